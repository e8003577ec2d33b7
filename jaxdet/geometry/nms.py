"""Non-maximum suppression: of boxes that overlap, only the best stays.

Exact and greedy at every threshold. Sizes are fixed, so it compiles once and can be vmapped. It
takes k steps of n overlaps each, not n * n: on CPUs about 1 ns per overlap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxdet.geometry import iou as iou_ops


class Kept(NamedTuple):
    """Which boxes stay, best first."""

    indices: Int32[Array, " k"]  # Rows of the input; 0 where not valid.
    valid: Bool[Array, " k"]


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float | int,
    max_outputs: int,
) -> Kept:
    """Keeps the best box, drops those that overlap it, and so on with what is left.

    Args:
      boxes: xyxy pixels.
      scores: Any measure; equal ones rank by lower index, NaN last.
      valid: False rows neither stay nor suppress.
      iou_threshold: A box goes if its IoU with a better one that stays is above it, 0 to 1.
      max_outputs: k, the number of slots.

    Returns:
      The first k boxes of the greedy order.

    Source:
      R-CNN (Girshick et al. 2014, arXiv:1311.2524v5), section 2.2.

    Departures:
      The IoU is compared with the threshold in float32, so that an IoU of 3 / 10 is not above
      0.3; torchvision on CPUs compares with the double, where it is.
    """
    groups = jnp.zeros(scores.shape, jnp.int32)
    return batched_nms(
        boxes, scores, groups, valid, iou_threshold=iou_threshold, max_outputs=max_outputs
    )


def batched_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float | int,
    max_outputs: int,
) -> Kept:
    """As `nms`, but only boxes of one group (a class, a pyramid level) suppress each other.

    Args:
      boxes: xyxy pixels.
      scores: Any measure; equal ones rank by lower index, NaN last.
      groups: Any integers.
      valid: False rows neither stay nor suppress.
      iou_threshold: A box goes if its IoU with a better one that stays is above it, 0 to 1.
      max_outputs: k, the number of slots, shared by all groups.

    Returns:
      The first k boxes of the greedy order, all groups together.

    Departures:
      Groups are compared, not moved apart by an offset as in torchvision and Detectron, which
      costs digits of the coordinates and with them exactness.
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be between 0 and 1. Got {iou_threshold}")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be positive. Got {max_outputs}")
    n = scores.shape[0]
    if n == 0:
        return Kept(jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool))
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    boxes, groups = boxes[order], groups[order]
    ranks = jnp.arange(n, dtype=jnp.int32)

    # Tiles of boxes against the ones kept so far make fewer, larger steps; on a CPU they gained
    # about a quarter at n = 5000, nothing at n = 1000, and took twice as long to compile.
    def keep_next(alive, _):
        first = jnp.min(jnp.where(alive, ranks, n))
        row = jnp.minimum(first, n - 1)
        overlaps = iou_ops.pairwise_iou(boxes[row][None], boxes)[0] > iou_threshold
        suppressed = overlaps & (groups == groups[row])
        return alive & ~suppressed & (ranks != first), first

    _, kept = jax.lax.scan(keep_next, valid[order], length=max_outputs)
    found = kept < n
    return Kept(jnp.where(found, order[jnp.minimum(kept, n - 1)], 0), found)
