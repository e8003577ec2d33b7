"""Where a picture goes on its canvas; boxes, segments and keypoints go with it.

image     [h w 3], RGB, uint8
points    [..., 2], (x, y), pixels; column i covers [i, i + 1)
boxes     [n 4], xyxy pixels, half-open
canvas    (height, width) of the array that holds the picture in its top left corner
window    (y1, x1, y2, x2), whole pixels
frame     a window that may reach beyond the picture

Cropping, resizing, turning and mirroring are one `View`, drawn once, however many were asked for.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from jaxdet.data import segments
from jaxdet.data.records import Annotation

Size = tuple[int, int]
Window = tuple[int, int, int, int]
Pairs = Sequence[tuple[int, int]]
Image = UInt8[np.ndarray, "h w 3"]
Boxes = Float32[np.ndarray, "n 4"]

# An object with less than this left of it in view is not held against a detector.
MIN_AREA_LEFT = 0.25
FILL = (124, 116, 104)  # Where there is no picture: ImageNet's mean colour.


class View(NamedTuple):
    """How a picture is shown: a part of it, resized, laid down, turned, mirrored; in this order."""

    window: (
        Window  # The part of the picture; what lies beyond shows only where a turn brings it in.
    )
    place: Window  # Where it goes, in pixels of the view.
    size: Size  # (height, width) of the view.
    angle: float = 0.0  # Degrees about the middle of the view, clockwise on the screen.
    flip_x: bool = False  # Left-right.
    flip_y: bool = False  # Upside down.


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


def fitting_view(size: Size, canvas: Size) -> View:
    """The whole picture, as large as the canvas allows; see `resized_size`."""
    height, width = resized_size(size, canvas)
    return View((0, 0, *size), (0, 0, height, width), (height, width))


def view_of_frame(frame: Window, size: Size, picture: Size) -> View:
    """A frame at another size.

    Args:
      frame: What to show; it may reach beyond the picture, or miss it.
      size: (height, width) to give to it.
      picture: (height, width) of the picture.

    Returns:
      A view in which the picture's part starts and ends at whole pixels.
    """
    y1, x1, y2, x2 = frame
    window = (max(y1, 0), max(x1, 0), min(y2, picture[0]), min(x2, picture[1]))
    if window == frame:
        return View(frame, (0, 0, *size), size)
    scale_y, scale_x = size[0] / (y2 - y1), size[1] / (x2 - x1)
    top, bottom = (round((y - y1) * scale_y) for y in window[::2])
    left, right = (round((x - x1) * scale_x) for x in window[1::2])
    if top < bottom and left < right:
        return View(window, (top, left, bottom, right), size)
    beside = (size[0], size[1], 2 * size[0], 2 * size[1])
    return View((0, 0, *picture), beside, size)


def move_points(points: Float[np.ndarray, "*b 2"], view: View) -> Float[np.ndarray, "*b 2"]:
    """Points of the picture in pixels of the view, those outside of it too."""
    (y1, x1, y2, x2), (top, left, bottom, right) = view.window, view.place

    def row(*values: int | float) -> np.ndarray:
        return np.array(values, points.dtype)[(None,) * (points.ndim - 1)]

    scale = row((right - left) / (x2 - x1), (bottom - top) / (y2 - y1))
    limit = row(view.size[1], view.size[0])
    moved = (points - row(x1, y1)) * scale + row(left, top)
    if view.angle:
        cos, sin = math.cos(math.radians(view.angle)), math.sin(math.radians(view.angle))
        turn = np.array([[cos, -sin], [sin, cos]], points.dtype)
        moved = (moved - limit / 2) @ turn.T + limit / 2
    return np.where([view.flip_x, view.flip_y], limit - moved, moved)


def view_matrix(view: View) -> segments.Matrix:
    """`move_points` as a 2 x 3 matrix."""
    origin, x, y = move_points(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), view)
    return np.column_stack([x - origin, y - origin, origin])


def render(image: Image, view: View) -> UInt8[np.ndarray, "view_h view_w 3"]:
    """The pixels of a view; `FILL` beside the picture."""
    if view.angle:
        return _turned(image, view)
    y1, x1, y2, x2 = view.window
    top, left, bottom, right = view.place
    pixels = image[y1:y2, x1:x2]
    if view.place == (0, 0, *view.size):
        pixels = resize(pixels, view.size)
    else:
        sheet = np.full((*view.size, 3), FILL, np.uint8)
        if top < view.size[0] and left < view.size[1]:
            sheet[top:bottom, left:right] = resize(pixels, (bottom - top, right - left))
        pixels = sheet
    if view.flip_x or view.flip_y:
        pixels = cv2.flip(pixels, -1 if view.flip_x and view.flip_y else int(view.flip_x))
    return pixels


def _turned(image: Image, view: View) -> UInt8[np.ndarray, "view_h view_w 3"]:
    matrix = view_matrix(view)
    height, width = image.shape[:2]
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale < 1:  # Area means first, where linear interpolation would leave pixels out.
        new_h, new_w = scaled_size((height, width), scale, (height, width))
        image = resize(image, (new_h, new_w))
        matrix = matrix @ np.diag([width / new_w, height / new_h, 1.0])
    return cv2.warpAffine(
        image,
        segments.index_matrix(matrix),
        (view.size[1], view.size[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )


def resize(image: Image, size: Size) -> UInt8[np.ndarray, "new_h new_w 3"]:
    """Another size: area means when shrinking, bilinear when growing."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def move_annotation(
    annotation: Annotation, view: View, *, keypoint_pairs: Pairs = ()
) -> Annotation:
    """All that is known of a picture, in pixels of a view of it.

    Args:
      annotation: Of the picture.
      view: What is made of it.
      keypoint_pairs: Indices of keypoints that a mirror image swaps, such as left and right eye.

    Returns:
      The same objects. Boxes are clipped to the view, to zero area if they lie outside; those of
      a turned picture are around the turned segment, or where there is none around the turned
      box. Keypoints out of view are not labelled.
    """
    matrix = view_matrix(view)
    moved = annotation.segments
    if moved is not None:
        moved = tuple(s and segments.move_segment(s, matrix, view.size) for s in moved)
    boxes = _moved_boxes(annotation, view)
    if view.angle and moved is not None:
        boxes = np.array(
            [
                b if s is None else segments.segment_box(s)
                for b, s in zip(boxes, moved, strict=True)
            ],
            np.float32,
        ).reshape(-1, 4)
    keypoints = annotation.keypoints
    if keypoints is not None:
        # Two mirror images are a half turn: left stays left.
        mirrored = view.flip_x != view.flip_y
        keypoints = _moved_keypoints(keypoints, view, keypoint_pairs if mirrored else ())
    return annotation._replace(
        size=view.size,
        boxes=_clipped(boxes, view),
        areas=None,
        segments=moved,
        keypoints=keypoints,
    )


def _moved_boxes(annotation: Annotation, view: View) -> Boxes:
    """Not clipped: around the corners of each box."""
    x1, y1, x2, y2 = annotation.boxes.T
    xs, ys = ((x1, x2, x1, x2), (y1, y1, y2, y2)) if view.angle else ((x1, x2), (y1, y2))
    corners = move_points(np.stack([np.stack(xs), np.stack(ys)], axis=-1), view)
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=-1)


def _moved_keypoints(
    keypoints: Float32[np.ndarray, "n j 3"], view: View, pairs: Pairs
) -> Float32[np.ndarray, "n j 3"]:
    order = np.arange(keypoints.shape[1])
    for one, other in pairs:
        order[[one, other]] = order[[other, one]]
    points, visible = move_points(keypoints[:, order, :2], view), keypoints[:, order, 2:]
    limit = np.array([view.size[1], view.size[0]], np.float32)[None, None]
    inside = np.all((points >= 0) & (points < limit), axis=-1, keepdims=True)
    return np.where(inside & (visible > 0), np.concatenate([points, visible], axis=-1), 0)


def drop_unseen(moved: Annotation, annotation: Annotation, view: View) -> Annotation:
    """Leaves out what is not in view, and marks as difficult what hardly is.

    Args:
      moved: From `move_annotation`.
      annotation: What it was made from.
      view: Likewise.

    Returns:
      The objects with an area; those that are no crowds and have less than `MIN_AREA_LEFT` of
      their box in view are difficult, unless the one object is the whole picture.
    """
    area = seen = box_areas(moved.boxes)
    if view.angle:  # How much the turn made of the box is no matter: some segments fill it less.
        turned = _moved_boxes(annotation, view)
        whole, seen = box_areas(turned), box_areas(_clipped(turned, view))
    else:
        (y1, x1, y2, x2), (top, left, bottom, right) = view.window, view.place
        scale = ((bottom - top) / (y2 - y1)) * ((right - left) / (x2 - x1))
        whole = box_areas(annotation.boxes) * np.float32(scale)
    cut = (seen < MIN_AREA_LEFT * whole) & ~moved.crowd
    if is_whole(annotation):
        cut[:] = False
    return take(moved._replace(difficult=moved.difficult | cut), area > 0)


def is_whole(annotation: Annotation) -> bool:
    """Whether the one object is the whole picture: its class is that of any part of it, too."""
    if len(annotation.boxes) != 1:
        return False
    return bool(box_areas(annotation.boxes)[0] >= annotation.size[0] * annotation.size[1])


def _clipped(boxes: Boxes, view: View) -> Boxes:
    return np.clip(boxes, 0, np.array([[view.size[1], view.size[0]] * 2], np.float32))


def box_areas(boxes: Boxes) -> Float32[np.ndarray, " n"]:
    """Areas, px^2."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float32)


def take(annotation: Annotation, kept: Bool[np.ndarray, " n"]) -> Annotation:
    """Some of the objects."""

    def some(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[kept]

    outlines = annotation.segments
    if outlines is not None:
        outlines = tuple(s for s, keep in zip(outlines, kept, strict=True) if keep)
    return annotation._replace(
        boxes=annotation.boxes[kept],
        labels=annotation.labels[kept],
        crowd=annotation.crowd[kept],
        difficult=annotation.difficult[kept],
        areas=some(annotation.areas),
        segments=outlines,
        keypoints=some(annotation.keypoints),
    )
