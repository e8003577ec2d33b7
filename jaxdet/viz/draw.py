"""Boxes on pictures.

image     uint8, [height, width, 3], RGB. Every function returns a new one.
boxes     (x1, y1, x2, y2), pixels of the image as it came in, before any magnification.
"""

import colorsys
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Color = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_SCALE = 0.42
IGNORED = (150, 150, 150)
PAPER, INK = (255, 255, 255), (30, 30, 30)
READABLE_SIDE = 512  # px; smaller pictures are magnified to about this, so that text fits.
DASH = 8  # px


def draw_boxes(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    *,
    scores: Float[np.ndarray, " n"] | None = None,
    valid: Bool[np.ndarray, " n"] | None = None,
    ignored: Bool[np.ndarray, " n"] | None = None,
    magnify: int | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the image with boxes and the names of their classes.

    Args:
      image: The picture.
      boxes: Pixels of `image`.
      labels: 1..k.
      classes: Names of label 1, of label 2, ...
      scores: 0 to 1, written behind the name.
      valid: Which boxes to draw; all by default.
      ignored: Crowds and difficult objects, drawn dashed and grey.
      magnify: Whole factor by which the picture grows first; by default as much as makes the
        longer side at least 512 px.

    Returns:
      The picture, `magnify` times as large.
    """
    if magnify is None:
        magnify = max(1, math.ceil(READABLE_SIDE / max(image.shape[:2])))
    if magnify < 1:
        raise ValueError(f"magnify should be at least 1, got {magnify}")
    height, width = image.shape[0] * magnify, image.shape[1] * magnify
    canvas = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    drawn = np.arange(len(boxes)) if valid is None else np.flatnonzero(valid)
    if scores is not None:
        drawn = drawn[np.argsort(scores[drawn], kind="stable")]  # The best ends up on top.
    grey = np.zeros(len(boxes), bool) if ignored is None else ignored
    corners = {i: _corners(boxes[i] * magnify, height, width) for i in drawn}
    colors = {i: IGNORED if grey[i] else class_color(int(labels[i])) for i in drawn}
    for i in drawn:
        _outline(canvas, *corners[i], colors[i], bool(grey[i]))
    for i in drawn:
        name = classes[int(labels[i]) - 1]
        text = name if scores is None else f"{name} {scores[i]:.2f}"
        _tag(canvas, text, corners[i], colors[i])
    return canvas


def side_by_side(
    truth: UInt8[np.ndarray, "h w 3"],
    predictions: UInt8[np.ndarray, "h2 w2 3"],
    *,
    titles: tuple[str, str] = ("ground truth", "predictions"),
) -> UInt8[np.ndarray, "h3 w3 3"]:
    """Returns two pictures beside each other, each under its title."""
    return contact_sheet(
        [titled(truth, titles[0]), titled(predictions, titles[1])], columns=2, margin=4
    )


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int, *, margin: int = 12
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns one picture of many, in rows of `columns`, `margin` px apart, on white.

    Of none, the white alone.
    """
    if columns < 1:
        raise ValueError(f"Expected columns >= 1, got {columns}")
    images = images or [np.full((1, 1, 3), PAPER, np.uint8)]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    shape = (rows * (height + margin) + margin, columns * (width + margin) + margin, 3)
    sheet = np.full(shape, PAPER, np.uint8)
    for i, image in enumerate(images):
        y = margin + (i // columns) * (height + margin)
        x = margin + (i % columns) * (width + margin)
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def save_png(path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"]) -> Path:
    """Writes the image, makes folders that are missing, and returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"Could not encode an image of shape {image.shape} for {path}")
    path.write_bytes(data.tobytes())
    return path


def class_color(label: int) -> Color:
    """Returns the fixed, bright colour of a label 1, 2, ...; neighbours are far apart in hue."""
    hue = (label - 1) * 0.6180339887 % 1.0  # Steps of the golden ratio never come close again.
    value = (1.0, 0.8)[label // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _corners(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The first and last pixel of a half-open box, within the picture."""
    high = (width, height, width, height)
    x1, y1, x2, y2 = np.clip(np.round(np.nan_to_num(box)), 0, high).astype(int).tolist()
    x1, y1 = min(x1, width - 1), min(y1, height - 1)
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def _outline(
    canvas: np.ndarray, x1: int, y1: int, x2: int, y2: int, color: Color, dashed: bool
) -> None:
    if not dashed:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 2)
        return
    for start, end in _dashes((x1, y1), (x2, y1)):
        cv2.line(canvas, start, end, color, 2)
        cv2.line(canvas, (start[0], y2), (end[0], y2), color, 2)
    for start, end in _dashes((x1, y1), (x1, y2)):
        cv2.line(canvas, start, end, color, 2)
        cv2.line(canvas, (x2, start[1]), (x2, end[1]), color, 2)


def _dashes(
    start: tuple[int, int], end: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Pieces of a horizontal or vertical line."""
    length = max(end[0] - start[0], end[1] - start[1])
    step = np.sign([end[0] - start[0], end[1] - start[1]]).astype(int)
    for at in range(0, length + 1, 2 * DASH):
        first, last = start + step * at, start + step * min(at + DASH, length)
        yield (int(first[0]), int(first[1])), (int(last[0]), int(last[1]))


def _tag(canvas: np.ndarray, text: str, corners: tuple[int, int, int, int], color: Color) -> None:
    """Writes on a patch of colour above the box, or inside where there is no room above."""
    (width, height), base = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    high, x, y = height + base + 2, corners[0] - 1, corners[1] - 1
    x = max(0, min(x, canvas.shape[1] - width - 4))
    y = max(0, y - high)
    cv2.rectangle(canvas, (x, y), (x + width + 3, y + high), color, cv2.FILLED)
    # Perceived brightness of the patch.
    ink = INK if np.dot(color, (0.299, 0.587, 0.114)) > 110 else PAPER
    cv2.putText(canvas, text, (x + 2, y + height + 2), FONT, FONT_SCALE, ink, 1, cv2.LINE_AA)


def titled(image: UInt8[np.ndarray, "h w 3"], title: str) -> UInt8[np.ndarray, "h2 w 3"]:
    """Returns the picture with a line of text above it."""
    bar = np.full((24, image.shape[1], 3), PAPER, np.uint8)
    cv2.putText(bar, title, (4, 17), FONT, 0.55, INK, 1, cv2.LINE_AA)
    return np.concatenate([bar, image])
