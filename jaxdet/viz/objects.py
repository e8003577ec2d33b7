"""Masks and keypoints on pictures.

image     uint8, [height, width, 3], RGB. Every function returns a new one of the same size.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxdet.viz.draw import INK, PAPER, class_color

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
