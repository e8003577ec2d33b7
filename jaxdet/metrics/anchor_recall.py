"""How well anchors fit the boxes of a data set, before anything is trained.

overlap   IoU of a box with the anchor that fits it best.
recall    Share of boxes whose overlap is a threshold or more.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float

from jaxdet.geometry import iou

THRESHOLDS = (0.5, 0.7)


def best_overlaps(boxes: Float[Array, "n 4"], anchors: Float[Array, "m 4"]) -> Float[Array, " n"]:
    """The IoU of each box with the anchor that fits it best.

    Args:
      boxes: xyxy pixels; those without area get 0.
      anchors: xyxy pixels, one or more.
    """
    return iou.pairwise_iou(boxes, anchors).max(axis=1)


def recall_by_size(
    overlaps: Float[np.ndarray, " n"],
    sides: Float[np.ndarray, " n"],
    sizes: Mapping[str, tuple[float, float]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, dict[str, float]]:
    """Recalls of the boxes of each size, and of all.

    Args:
      overlaps: From `best_overlaps`.
      sides: Square roots of the boxes' areas, pixels.
      sizes: By name, the least side and the first beyond, pixels.
      thresholds: Of the overlap, 0 to 1.

    Returns:
      {"all" or name: {"boxes": count, "mean": overlap, "0.5": recall, ...}}; NaN without boxes.
    """
    chosen = {"all": np.ones(len(sides), bool)}
    chosen |= {name: (sides >= low) & (sides < high) for name, (low, high) in sizes.items()}
    table = {}
    for name, rows in chosen.items():
        own = overlaps[rows]
        nothing = float("nan")
        table[name] = {"boxes": float(len(own)), "mean": float(own.mean()) if len(own) else nothing}
        for threshold in thresholds:
            recall = float(np.mean(own >= threshold)) if len(own) else nothing
            table[name][f"{threshold:g}"] = recall
    return table
