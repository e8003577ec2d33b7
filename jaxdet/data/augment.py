"""From a picture of any size to one on a canvas, boxes along with it: NumPy and OpenCV.

image     [h w 3], RGB, uint8
boxes     [n 4], xyxy pixels, half-open
canvas    (height, width) of the array that holds the picture in its top left corner
window    (y1, x1, y2, x2), whole pixels: the part of the picture that is kept

The randomness of an image comes from the generator given, always by the same number of draws.
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from jaxdet.data.records import Annotation

Size = tuple[int, int]
Window = tuple[int, int, int, int]
Image = UInt8[np.ndarray, "h w 3"]
Canvas = UInt8[np.ndarray, "canvas_h canvas_w 3"]
Boxes = Float32[np.ndarray, "n 4"]

# An object with less than this left of it in view is not held against a detector.
MIN_AREA_LEFT = 0.25
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601.


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied; the defaults only mirror them."""

    horizontal_flip: float = 0.5
    """Probability of a left-right mirror image."""
    vertical_flip: float = 0.0
    """Probability of an upside-down one; 0.5 suits microscopes and views from above."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the size relative to the largest that fits the canvas; beyond 1 crops."""
    brightness: float = 0.0
    """Factor on all values, drawn from 1 - b to 1 + b."""
    contrast: float = 0.0
    """Factor on the distance to the picture's mean grey, drawn likewise."""
    saturation: float = 0.0
    """Factor on the distance to each pixel's own grey, drawn likewise."""
    hue: float = 0.0
    """Largest rotation of the colours about the grey axis, degrees."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be (low, high), 0 < low <= high: got {self.scale}")
        for name in ("horizontal_flip", "vertical_flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1: got {getattr(self, name)}")


class Placed(NamedTuple):
    """A picture on its canvas."""

    pixels: UInt8[np.ndarray, "h w 3"]  # The canvas; zeros beside the picture.
    size: Size  # (height, width) of the picture on it.
    boxes: Float32[np.ndarray, "n 4"]  # In pixels of the canvas, inside `size`.


def resized_size(size: Size, canvas: Size) -> Size:
    """The largest (height, width) of the same shape that fits the canvas, in whole pixels.

    The way back divides by `resized / original`, height and width each by its own ratio, which
    rounding makes differ a little.
    """
    return scaled_size(size, min(canvas[0] / size[0], canvas[1] / size[1]), canvas)


def scaled_size(size: Size, scale: float, limit: Size) -> Size:
    """`size * scale` in whole pixels, from 1 to `limit`."""
    height, width = (
        max(1, min(most, round(side * scale))) for side, most in zip(size, limit, strict=True)
    )
    return height, width


def place(image: Image, boxes: Boxes, canvas: Size, *, window: Window, size: Size) -> Placed:
    """Cuts a window out of a picture, resizes it, lays it into the corner of a canvas.

    Args:
      image: The picture.
      boxes: Objects in it.
      canvas: (height, width) of the result's array.
      window: The part to keep, (y1, x1, y2, x2).
      size: (height, width) to give to it, at most the canvas.

    Returns:
      The canvas; boxes are clipped to the picture, to zero area if they lie outside the window.
    """
    y1, x1, y2, x2 = window
    pixels = np.zeros((*canvas, 3), np.uint8)
    pixels[: size[0], : size[1]] = resize(image[y1:y2, x1:x2], size)
    scale = np.array([size[1] / (x2 - x1), size[0] / (y2 - y1)] * 2, np.float32)
    moved = (boxes - np.array([x1, y1, x1, y1], np.float32)[None]) * scale[None]
    limit = np.array([size[1], size[0]] * 2, np.float32)
    return Placed(pixels, size, np.clip(moved, 0, limit[None]))


def resize(image: Image, size: Size) -> UInt8[np.ndarray, "new_h new_w 3"]:
    """Another size: area means when shrinking, bilinear when growing."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def fit_to_canvas(image: Image, boxes: Boxes, canvas: Size) -> Placed:
    """The whole picture, as large as the canvas allows; see `resized_size`."""
    height, width = image.shape[:2]
    size = resized_size((height, width), canvas)
    return place(image, boxes, canvas, window=(0, 0, height, width), size=size)


def scale_jitter(
    rng: np.random.Generator, size: Size, canvas: Size, *, low: float, high: float
) -> tuple[Window, Size]:
    """Draws what `place` needs for a random size, and a random crop where that is too large.

    Args:
      rng: Three draws are made from it.
      size: (height, width) of the picture.
      canvas: (height, width) it has to fit.
      low: Least scale, relative to the largest that fits.
      high: Greatest scale, likewise.

    Returns:
      The window of the picture to keep, and the (height, width) to give to it.

    Source:
      Large scale jitter (Ghiasi et al. 2021, arXiv:2012.07177v2, section 3).

    Departures:
      The scale is drawn from a log-uniform law, so that halves are as likely as doubles.
    """
    factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    scale = factor * min(canvas[0] / size[0], canvas[1] / size[1])
    kept_h, kept_w = (
        max(1, min(side, round(room / scale))) for side, room in zip(size, canvas, strict=True)
    )
    y1 = round(rng.uniform() * (size[0] - kept_h))
    x1 = round(rng.uniform() * (size[1] - kept_w))
    height, width = scaled_size(size, scale, canvas)
    return (y1, x1, y1 + kept_h, x1 + kept_w), (height, width)


def horizontal_flip(image: Image, boxes: Boxes) -> tuple[Image, Boxes]:
    """The left-right mirror image: x1' = w - x2, x2' = w - x1."""
    x1, y1, x2, y2 = boxes.T
    width = np.float32(image.shape[1])
    return cv2.flip(image, 1), np.stack([width - x2, y1, width - x1, y2], axis=1)


def vertical_flip(image: Image, boxes: Boxes) -> tuple[Image, Boxes]:
    """The upside-down image: y1' = h - y2, y2' = h - y1."""
    x1, y1, x2, y2 = boxes.T
    height = np.float32(image.shape[0])
    return cv2.flip(image, 0), np.stack([x1, height - y2, x2, height - y1], axis=1)


def color_jitter(
    rng: np.random.Generator,
    image: Image,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Image:
    """Varies light and colours by one affine map of the colour space.

        rgb' = C (H S (B rgb) - m) + m      rounded and cut to 0..255

    where B scales by the brightness, S moves colours to or from their own grey, H turns them
    about the grey axis and C scales the distance to m, the mean grey of the picture.

    Args:
      rng: Four draws are made from it.
      image: The picture.
      brightness: Largest relative change of B, 0 to 1.
      contrast: Largest relative change of C, 0 to 1.
      saturation: Largest relative change of S, 0 to 1.
      hue: Largest angle of H, degrees.

    Returns:
      A new picture of the same size, or the one given if nothing is to vary.

    Departures:
      Torchvision's ColorJitter draws the order of the four and turns the hue in HSV; here the
      order is fixed and all are linear, which is one pass over the pixels.
    """
    draws = rng.uniform(-1.0, 1.0, 4)
    if not (brightness or contrast or saturation or hue):
        return image
    b, c, s = 1.0 + draws[:3] * np.array([brightness, contrast, saturation])
    to_grey = np.tile(LUMA[None], (3, 1))
    matrix = b * _hue_rotation(draws[3] * hue) @ (s * np.eye(3) + (1.0 - s) * to_grey)
    mean = float(LUMA @ matrix @ np.array(cv2.mean(image)[:3]))
    offset = np.full((3, 1), (1.0 - c) * mean)
    return cv2.transform(image, np.hstack([c * matrix, offset]))


def _hue_rotation(degrees: float) -> np.ndarray:
    """The 3 x 3 rotation about (1, 1, 1); greys stay as they are."""
    axis = np.full(3, 1 / math.sqrt(3)) * math.radians(degrees)
    return cv2.Rodrigues(axis)[0]


def augment(
    rng: np.random.Generator,
    image: Image,
    annotation: Annotation,
    canvas: Size,
    augmentation: Augmentation,
) -> tuple[Canvas, Annotation]:
    """One random variant of a picture on a canvas.

    Args:
      rng: The randomness of this image.
      image: The picture.
      annotation: Its objects.
      canvas: (height, width) of the result's array.
      augmentation: What to vary.

    Returns:
      The canvas, and the annotation in its pixels. Objects out of view are gone; those with less
      than a quarter of their box in view are difficult.
    """
    flip_x, flip_y = rng.uniform(size=2)
    low, high = augmentation.scale
    height, width = image.shape[:2]
    window, size = scale_jitter(rng, (height, width), canvas, low=low, high=high)
    placed = place(image, annotation.boxes, canvas, window=window, size=size)
    picture, boxes = placed.pixels[: size[0], : size[1]], placed.boxes
    if flip_x < augmentation.horizontal_flip:
        picture, boxes = horizontal_flip(picture, boxes)
    if flip_y < augmentation.vertical_flip:
        picture, boxes = vertical_flip(picture, boxes)
    picture = color_jitter(
        rng,
        picture,
        brightness=augmentation.brightness,
        contrast=augmentation.contrast,
        saturation=augmentation.saturation,
        hue=augmentation.hue,
    )
    placed.pixels[: size[0], : size[1]] = picture
    scale = (size[0] / (window[2] - window[0])) * (size[1] / (window[3] - window[1]))
    whole = _areas(annotation.boxes) * np.float32(scale)
    return placed.pixels, _in_view(annotation, boxes, size, whole)


def _areas(boxes: Boxes) -> Float32[np.ndarray, " n"]:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float32)


def _in_view(
    annotation: Annotation, boxes: Boxes, size: Size, whole: Float32[np.ndarray, " n"]
) -> Annotation:
    """Drops the objects without area, marks those with too little of their whole area."""
    area = _areas(boxes)
    kept = area > 0
    cut = (area < MIN_AREA_LEFT * whole) & ~annotation.crowd
    return annotation._replace(
        size=size,
        boxes=boxes[kept],
        labels=annotation.labels[kept],
        crowd=annotation.crowd[kept],
        difficult=(annotation.difficult | cut)[kept],
        areas=None,
    )
