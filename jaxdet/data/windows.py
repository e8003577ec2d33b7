"""Which part of a picture to show, drawn at random: scales, crops, larger sheets.

size      (height, width), pixels
canvas    (height, width) that the part has to fit
window    (y1, x1, y2, x2), whole pixels
frame     a window that may reach beyond the picture
boxes     [n 4], xyxy pixels, half-open

Each function makes a fixed number of draws.
"""

import math

import numpy as np
from jaxtyping import Bool, Float32

from jaxdet.data.transforms import Boxes, Size, Window, scaled_size

# Ranges of `scale_jitter`, from the paper named there.
STANDARD_JITTER = (0.8, 1.25)
LARGE_JITTER = (0.1, 2.0)

OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 50


def scale_jitter(
    rng: np.random.Generator,
    size: Size,
    canvas: Size,
    *,
    low: float,
    high: float,
    room: Size | None = None,
) -> tuple[Window, Size]:
    """Draws a random size, and a random crop where that is too large.

    Args:
      rng: Three draws are made from it.
      size: (height, width) of the picture.
      canvas: (height, width) that scale 1 fits.
      low: Least scale, relative to the largest that fits.
      high: Greatest scale, likewise.
      room: (height, width) there is; the canvas if None.

    Returns:
      The window of the picture to keep, and the (height, width) to give to it.

    Source:
      Standard and large scale jitter (Ghiasi et al. 2021, arXiv:2012.07177v2, section 3).

    Departures:
      The scale is drawn from a log-uniform law, so that halves are as likely as doubles. The
      paper's range for standard jitter is 0.8 to 1.25, for large 0.1 to 2.
    """
    room = canvas if room is None else room
    factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    scale = factor * min(canvas[0] / size[0], canvas[1] / size[1])
    kept_h, kept_w = (
        max(1, min(side, round(most / scale))) for side, most in zip(size, room, strict=True)
    )
    y1 = round(rng.uniform() * (size[0] - kept_h))
    x1 = round(rng.uniform() * (size[1] - kept_w))
    height, width = scaled_size(size, scale, room)
    return (y1, x1, y1 + kept_h, x1 + kept_w), (height, width)


def expand(rng: np.random.Generator, size: Size, *, largest: float = 4.0) -> Window:
    """Lays a picture at random on a larger sheet, so that its objects become small.

    Args:
      rng: Three draws are made from it.
      size: (height, width) of the picture.
      largest: Greatest side of the sheet, relative to the picture's.

    Returns:
      The sheet, as a frame around the picture.

    Source:
      SSD (Liu et al. 2016, arXiv:1512.02325v5), section 3.6.
    """
    ratio, down, right = rng.uniform(size=3)
    ratio = 1 + ratio * (largest - 1)
    height, width = round(size[0] * ratio), round(size[1] * ratio)
    y1, x1 = -round(down * (height - size[0])), -round(right * (width - size[1]))
    return y1, x1, y1 + height, x1 + width


def sample_patch(
    rng: np.random.Generator, frame: Window, boxes: Boxes, *, least: float = 0.3
) -> Window:
    """Draws a patch that has a drawn overlap with an object.

    One of seven, equally likely: the whole; a patch whose IoU with some object is at least 0.1,
    0.3, 0.5, 0.7 or 0.9; any patch. If no patch of 50 fits, the whole.

    Args:
      rng: 201 draws are made from it.
      frame: What to draw from.
      boxes: Objects, in the frame's pixels.
      least: Least side of a patch, relative to the frame's, before its shape is drawn.

    Returns:
      The patch, inside the frame, of a relative shape from 1/2 to 2.

    Source:
      SSD (Liu et al. 2016, arXiv:1512.02325v5), section 2.2.

    Departures:
      The paper's least side is 0.1; 0.3 is that of the authors' code.
    """
    mode = int(7 * rng.uniform())
    side, shape, down, right = rng.uniform(size=(4, TRIALS))
    if mode == 0:
        return frame
    side = least + side * (1 - least)
    low, high = np.maximum(0.5, side**2), np.minimum(2.0, side**-2)
    shape = np.sqrt(low + shape * (high - low))
    height, width = frame[2] - frame[0], frame[3] - frame[1]
    patch_h = np.clip(np.round(height * side / shape), 1, height)
    patch_w = np.clip(np.round(width * side * shape), 1, width)
    y1 = frame[0] + np.round(down * (height - patch_h))
    x1 = frame[1] + np.round(right * (width - patch_w))
    patches = np.stack([x1, y1, x1 + patch_w, y1 + patch_h], axis=-1)
    if mode == len(OVERLAPS) + 1:
        good = np.ones(TRIALS, bool)
    else:
        overlaps = _iou(patches, boxes) * _holds_centers(patches, boxes)
        good = overlaps.max(axis=1, initial=0.0) >= OVERLAPS[mode - 1]
    if not good.any():
        return frame
    left, top, right_end, bottom = patches[good.argmax()].astype(int).tolist()
    return top, left, bottom, right_end


def crop_with_object(
    rng: np.random.Generator, frame: Window, boxes: Boxes, *, least: float
) -> Window:
    """Draws a crop that keeps an object: all of it if it is not larger than the crop.

    Args:
      rng: Five draws are made from it.
      frame: What to draw from.
      boxes: Objects, in the frame's pixels; without any, the crop is anywhere.
      least: Least height and width, relative to the frame's.

    Returns:
      The crop, inside the frame.
    """
    draws = rng.uniform(size=5).tolist()
    which = min(int(draws[0] * len(boxes)), len(boxes) - 1)
    spans = []
    for axis, (start, end) in enumerate((frame[::2], frame[1::2])):
        side = max(1, round((end - start) * (least + draws[1 + axis] * (1 - least))))
        first, last = start, end - side
        if len(boxes):
            near, far = boxes[which, [1 - axis, 3 - axis]].tolist()
            ends = math.ceil(far - side), math.floor(near)
            first, last = (min(max(v, start), end - side) for v in sorted(ends))
        at = first + int(draws[3 + axis] * (last - first + 1))
        spans.append((at, at + side))
    (y1, y2), (x1, x2) = spans
    return y1, x1, y2, x2


def holds_centers(window: Window, boxes: Boxes) -> Bool[np.ndarray, " n"]:
    """Which boxes have their centre in a window."""
    y1, x1, y2, x2 = window
    return _holds_centers(np.array([[x1, y1, x2, y2]], np.float32), boxes)[0]


def _holds_centers(patches: np.ndarray, boxes: Boxes) -> Bool[np.ndarray, "m n"]:
    centers = (boxes[None, :, :2] + boxes[None, :, 2:]) / 2
    low, high = patches[:, None, :2], patches[:, None, 2:]
    return np.all((centers >= low) & (centers < high), axis=-1)


def _iou(patches: np.ndarray, boxes: Boxes) -> Float32[np.ndarray, "m n"]:
    one, two = patches[:, None].astype(np.float32), boxes[None]
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    area = np.prod(one[..., 2:] - one[..., :2], axis=-1)
    other = np.prod(two[..., 2:] - two[..., :2], axis=-1)
    return common / (area + other - common)
