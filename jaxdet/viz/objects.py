"""Masks and keypoints on pictures.

image     uint8, [height, width, 3], RGB. Every function returns a new one.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxdet.viz.draw import INK, PAPER, class_color, contact_sheet, titled

OPACITY = 0.45


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"] | None],
    labels: Int[np.ndarray, " n"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image with masks in the colours of their classes, each with its outline.

    Args:
      image: The picture.
      masks: One an object; None for none.
      labels: 1..k.
    """
    canvas = image.copy()
    for mask, label in zip(masks, labels.tolist(), strict=True):
        if mask is None:
            continue
        color = class_color(label)
        blended = (1 - OPACITY) * canvas[mask] + OPACITY * np.array([color])
        canvas[mask] = blended.astype(np.uint8)
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(canvas, outlines, -1, color, 1)
    return canvas


def draw_keypoints(
    image: UInt8[np.ndarray, "h w 3"], keypoints: Float[np.ndarray, "n j 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image with a dot for each labelled keypoint, hollow for hidden ones.

    Args:
      image: The picture.
      keypoints: x, y, pixels, and 0: not labelled, 1: hidden, 2: seen; a colour a keypoint.
    """
    canvas = image.copy()
    radius = max(2, round(max(image.shape[:2]) / 200))
    for points in keypoints:
        for number, (x, y, visible) in enumerate(points.tolist()):
            if visible <= 0:
                continue
            center = (int(x), int(y))
            cv2.circle(canvas, center, radius + 1, INK, cv2.FILLED)
            inner = PAPER if visible < 2 else class_color(number + 1)
            cv2.circle(canvas, center, radius, inner, cv2.FILLED)
    return canvas


def draw_poses(
    image: UInt8[np.ndarray, "h w 3"],
    box: Float[np.ndarray, "4"],
    poses: Mapping[str, Float[np.ndarray, "j 3"]],
    *,
    side: int = 176,
    margin: float = 0.3,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns an object several times in a row, each time with another pose, under its name.

    Args:
      image: The picture.
      box: Of the object, xyxy pixels.
      poses: Keypoints as in `draw_keypoints`, by name.
      side: Of the squares into which the object and its surroundings are magnified, pixels.
      margin: How much of the surroundings is shown on each side, relative to the box's longer one.
    """
    half = (0.5 + margin) * max(box[2] - box[0], box[3] - box[1], 1)
    corner = np.array([box[0] + box[2], box[1] + box[3]]) / 2 - half
    scale = side / (2 * half)
    # Column i covers [i, i + 1) in both pictures; OpenCV counts from the middle of the first.
    shift = 0.5 * (scale - 1) - scale * corner
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    square = cv2.warpAffine(image, matrix, (side, side), borderValue=PAPER)
    tiles = []
    for name, keypoints in poses.items():
        points = np.concatenate([(keypoints[:, :2] - corner) * scale, keypoints[:, 2:]], axis=1)
        tiles.append(titled(draw_keypoints(square, points[None]), name))
    return contact_sheet(tiles, columns=len(tiles), margin=4)
