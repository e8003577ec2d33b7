"""Light and colours of a picture, drawn at random; nothing moves.

image     [h w 3], RGB, uint8
table     [256 1 3], uint8: what becomes of each value of each channel
"""

import math

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "h w 3"]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601.
_LEVELS = np.arange(256.0)
_HALF_DEGREES = 180  # OpenCV's hue is uint8, 0 to 179.


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


def hsv_jitter(
    rng: np.random.Generator, image: Image, *, hue: float, saturation: float, value: float
) -> Image:
    """Scales hue, saturation and value, each by a factor of its own.

        h' = h a mod 360, s' = min(s b, 1), v' = min(v c, 1)     a from 1 - hue to 1 + hue, ...

    Args:
      rng: Three draws are made from it.
      image: The picture.
      hue: Largest relative change of the hue, 0 to 1.
      saturation: Likewise of the saturation.
      value: Likewise of the value.

    Returns:
      A new picture of the same size, or the one given if nothing is to vary.

    Source:
      YOLO (Redmon et al. 2016, arXiv:1506.02640v5), section 2.2, which varies exposure and
      saturation by up to 1.5; in this form, with hue 0.015, saturation 0.7 and value 0.4, that
      of YOLOv5's `augment_hsv`.
    """
    factors = 1.0 + rng.uniform(-1.0, 1.0, 3) * np.array([hue, saturation, value])
    if not (hue or saturation or value):
        return image
    scaled = _LEVELS[:, None] * factors[None]
    return _in_hsv(image, np.column_stack([scaled[:, 0] % _HALF_DEGREES, scaled[:, 1:]]))


def distort(rng: np.random.Generator, image: Image, *, probability: float = 0.5) -> Image:
    """SSD's photometric distortions: each of four is made, or is not.

    Brightness changes by up to 32 of 255, contrast and saturation by factors from 0.5 to 1.5, hue
    by up to 18 degrees; contrast is the second or the last of them.

    Args:
      rng: Nine draws are made from it.
      image: The picture.
      probability: Of each distortion.

    Returns:
      A new picture of the same size, or the one given if nothing is to vary.

    Source:
      SSD (Liu et al. 2016, arXiv:1512.02325v5), section 2.2, which cites Howard 2013
      (arXiv:1312.5402v1, section 2); numbers and order are those of the authors' code.

    Departures:
      Values are rounded after each of the three passes.
    """
    last, *draws = rng.uniform(size=9).tolist()
    made, amount = np.array(draws[:4]) < probability, 2 * np.array(draws[4:]) - 1
    if not made.any():
        return image
    shift, contrast, saturation, hue = np.where(made, amount, 0) * [32, 0.5, 0.5, 18]
    levels = _LEVELS + shift
    if made[0] or (made[1] and last < 0.5):
        image = _look_up(image, levels if last >= 0.5 else np.clip(levels, 0, 255) * (1 + contrast))
    if made[2] or made[3]:
        hues = (_LEVELS + hue / 2) % _HALF_DEGREES
        image = _in_hsv(image, np.column_stack([hues, _LEVELS * (1 + saturation), _LEVELS]))
    if made[1] and last >= 0.5:
        image = _look_up(image, _LEVELS * (1 + contrast))
    return image


def _look_up(image: Image, levels: np.ndarray) -> Image:
    return cv2.LUT(image, np.clip(np.round(levels), 0, 255).astype(np.uint8))


def _in_hsv(image: Image, levels: np.ndarray) -> Image:
    """Looks each channel's values up after a change to HSV, and changes back."""
    table = np.clip(np.round(levels), 0, 255).astype(np.uint8)
    table[:, 0] %= _HALF_DEGREES
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[:, None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
