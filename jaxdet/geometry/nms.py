"""Non-maximum suppression: of boxes that overlap, only the best stays.

Exact and greedy at every threshold. Sizes are fixed, so it compiles once and can be vmapped. Boxes
come in tiles, best first; a tile meets the boxes kept so far, then itself. The work is that of the
boxes kept, n * kept overlaps at the most, and ends with the last slot.

t  rows of a tile       s  rows that stay, some of them
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxdet.geometry import iou as iou_ops

# Rows decided together, and kept rows they are compared with at once: the fastest on a CPU of
# 64 to 256 and 128 to 512.
TILE = 64
BLOCK = 512

Suppresses = Callable[[Int32[Array, " s"], Int32[Array, " t"]], Bool[Array, "s t"]]


class Kept(NamedTuple):
    """Which boxes stay, best first."""

    indices: Int32[Array, " k"]  # Rows of the input; 0 where not valid.
    valid: Bool[Array, " k"]


@jax.named_scope("nms")
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
      iou_threshold: A box goes if its IoU with a better one that stays is above it, 0 to 1; see
        `float32_at_most`.
      max_outputs: k, the number of slots.

    Returns:
      The first k boxes of the greedy order.

    Source:
      R-CNN (Girshick et al. 2014, arXiv:1311.2524v5), section 2.2.
    """
    groups = jnp.zeros(scores.shape, jnp.int32)
    return batched_nms(
        boxes, scores, groups, valid, iou_threshold=iou_threshold, max_outputs=max_outputs
    )


@jax.named_scope("nms")
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
      Groups are compared. Torchvision and Detectron move them apart, see `separate_groups`, which
      costs digits of the coordinates.
    """
    threshold = float32_at_most(iou_threshold)
    boxes, groups = jnp.asarray(boxes), jnp.asarray(groups)

    def suppresses(rows: Int32[Array, " s"], others: Int32[Array, " t"]) -> Bool[Array, "s t"]:
        same = groups[rows][:, None] == groups[others][None]
        return same & (iou_ops.pairwise_iou(boxes[rows], boxes[others]) > threshold)

    return suppress(suppresses, scores, valid, max_outputs=max_outputs)


def separate_groups(
    boxes: Float[Array, "n 4"], groups: Int[Array, " n"], valid: Bool[Array, " n"]
) -> Float[Array, "n 4"]:
    """Moves the boxes of each group where no other group's are, for a suppression without groups.

        box + group * (largest coordinate + 1)

    Args:
      boxes: xyxy pixels, >= 0.
      groups: >= 0.
      valid: Which boxes the largest coordinate is sought in.

    Returns:
      xyxy pixels; `nms` of them is `batched_nms` of the boxes, up to the digits that large
      coordinates lose.

    Source:
      Torchvision 0.28, ops/boxes.py (_batched_nms_coordinate_trick).
    """
    largest = jnp.max(jnp.where(valid[:, None], boxes, 0), initial=0)
    return boxes + groups.astype(boxes.dtype)[:, None] * (largest + 1)


def suppress(
    suppresses: Suppresses,
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    max_outputs: int,
) -> Kept:
    """Greedy suppression by any relation: of boxes, rotated boxes, masks, poses.

    Args:
      suppresses: Of row numbers i and j, which rows i, if they stay, remove which rows j.
      scores: Any measure; equal ones rank by lower index, NaN last.
      valid: False rows neither stay nor suppress.
      max_outputs: k, the number of slots.

    Returns:
      The first k rows of the greedy order.
    """
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be positive. Got {max_outputs}")
    scores, valid = jnp.asarray(scores), jnp.asarray(valid)
    n = scores.shape[0]
    if n == 0:
        return Kept(jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool))
    tile = min(TILE, n)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    padding = (0, -n % tile)
    alive, order = jnp.pad(valid[order], padding), jnp.pad(order, padding)
    n_slots = max_outputs + -max_outputs % BLOCK

    def more(state):
        start, count, _ = state
        return (start < n) & (count < max_outputs)

    def keep(state):
        start, count, kept = state
        rows = lax.dynamic_slice(order, (start,), (tile,))
        stays = _best_of_tile(
            suppresses(rows, rows),
            lax.dynamic_slice(alive, (start,), (tile,)) & ~_removed(suppresses, rows, kept, count),
        )
        slots = jnp.where(stays, count + jnp.cumsum(stays) - 1, n_slots)
        return (
            start + tile,
            count + jnp.sum(stays, dtype=jnp.int32),
            kept.at[slots].set(rows, mode="drop"),
        )

    nothing = (jnp.int32(0), jnp.int32(0), jnp.zeros(n_slots, jnp.int32))
    _, count, kept = lax.while_loop(more, keep, nothing)
    found = jnp.arange(max_outputs) < count
    return Kept(jnp.where(found, kept[:max_outputs], 0), found)


def _removed(
    suppresses: Suppresses,
    rows: Int32[Array, " t"],
    kept: Int32[Array, " slots"],
    count: Int32[Array, ""],
) -> Bool[Array, " t"]:
    """Which rows the first `count` kept ones remove."""

    def meet(block, removed):
        start = block * BLOCK
        there = start + jnp.arange(BLOCK) < count
        removes = suppresses(lax.dynamic_slice(kept, (start,), (BLOCK,)), rows)
        return removed | jnp.any(removes & there[:, None], axis=0)

    return lax.fori_loop(0, (count + BLOCK - 1) // BLOCK, meet, jnp.zeros(rows.shape, bool))


def _best_of_tile(removes: Bool[Array, "t t"], alive: Bool[Array, " t"]) -> Bool[Array, " t"]:
    """Greedy suppression of few rows, best first.

    It is the one fixed point of "no better row that stays removes me", reached after as many rounds
    as removals depend on each other.
    """
    better = jnp.arange(len(alive))[:, None] < jnp.arange(len(alive))[None]
    removes = removes & better

    def settle(state):
        stays, _ = state
        now = alive & ~jnp.any(removes & stays[:, None], axis=0)
        return now, jnp.any(now != stays)

    stays, _ = lax.while_loop(lambda state: state[1], settle, (alive, jnp.bool_(True)))
    return stays


def float32_at_most(threshold: float | int) -> np.float32:
    """The largest float32 that is not above a threshold.

    A float32 is above the one exactly if it is above the other. So 3 / 10 is above a threshold of
    0.3, as in torchvision on CPUs, which compares with the double: float32(0.3) > 0.3.

    Args:
      threshold: 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"iou_threshold must be between 0 and 1. Got {threshold}")
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1))
