"""Weighted boxes fusion: what several models say of one object becomes one box.

Sizes are fixed, so it compiles once and can be vmapped. It takes n steps of n overlaps each, and is
differentiable in boxes and scores for the clusters that they form.

n  boxes of all models, and clusters, each in the row of the box that began it
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms as nms_ops


class FusedBoxes(NamedTuple):
    """One box for each cluster, best first; all 0 where not valid."""

    boxes: Float[Array, "k 4"]  # xyxy pixels.
    scores: Float[Array, " k"]
    groups: Int[Array, " k"]
    valid: Bool[Array, " k"]


def weighted_box_fusion(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    n_models: int,
    iou_threshold: float | int,
    max_outputs: int,
) -> FusedBoxes:
    """Fuses the boxes of several models, or of several views, of one image.

    Boxes, best first, join the cluster of their group whose fused box they overlap most, if by more
    than the threshold, or begin one. Of a cluster of T boxes with scores s:

        fused box = sum(s * box) / sum(s)
        fused score = sum(s) / T * min(T, n_models) / n_models

    Args:
      boxes: xyxy pixels of one frame, those of all models in any order.
      scores: Above 0; equal ones rank by lower index. To trust a model more than others, multiply
        its scores by its weight / the mean weight.
      groups: Classes, any integers.
      valid: False rows do nothing; nor do those whose score is not above 0.
      n_models: How many models or views looked, >= 1.
      iou_threshold: Boxes join where their IoU is above it, 0 to 1; 0.55 in the paper.
      max_outputs: k, the number of slots, shared by all groups.

    Returns:
      The k best fused boxes; equal scores rank by the best box in them.

    Source:
      Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302v3), section 3; of its two scores
      the one with the minimum.

    Departures:
      The authors' package wants coordinates from 0 to 1, drops boxes without area, which here are
      clusters of their own, and leaves the order of equal scores open.
    """
    if n_models < 1:
        raise ValueError(f"n_models must be positive. Got {n_models}")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be positive. Got {max_outputs}")
    threshold = nms_ops.float32_at_most(iou_threshold)
    if len(scores) == 0:
        nothing = jnp.zeros(max_outputs, scores.dtype)
        return FusedBoxes(
            jnp.zeros((max_outputs, 4), boxes.dtype),
            nothing,
            nothing.astype(groups.dtype),
            nothing.astype(bool),
        )
    scores = jnp.where(valid & (scores > 0), scores, 0)
    boxes, groups = jnp.where(scores[:, None] > 0, boxes, 0), jnp.asarray(groups)
    order = jnp.argsort(-scores, stable=True)
    boxes, scores, groups = boxes[order], scores[order], groups[order]
    cluster = _clusters(*jax.lax.stop_gradient((boxes, scores)), groups, threshold)

    def total(rows: Array) -> Array:
        return jnp.zeros_like(rows).at[cluster].add(rows)

    sums, counts = total(scores), total((scores > 0).astype(scores.dtype))
    means = total(scores[:, None] * boxes) / jnp.where(sums > 0, sums, 1)[:, None]
    agreement = jnp.minimum(counts, n_models) / n_models
    fused_scores = sums / jnp.maximum(counts, 1) * agreement

    best = jnp.argsort(-fused_scores, stable=True)[:max_outputs]
    missing = (0, max_outputs - len(best))
    found = jnp.pad(counts[best] > 0, missing)
    return FusedBoxes(
        jnp.pad(means[best], (missing, (0, 0))),
        jnp.pad(fused_scores[best], missing),
        jnp.where(found, jnp.pad(groups[best], missing), 0),
        found,
    )


def _clusters(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    threshold: np.float32,
) -> Int32[Array, " n"]:
    """The row that began the cluster of each row; rows come best first."""

    def join(state: tuple[Float[Array, "n 4"], Float[Array, " n"]], row: Int32[Array, ""]):
        fused, sums = state  # 0 for the rows that began no cluster: they overlap nothing.
        overlaps = iou_ops.pairwise_iou(boxes[row][None], fused)[0]
        overlaps = jnp.where(groups == groups[row], overlaps, 0)
        closest = jnp.argmax(overlaps)
        slot = jnp.where(overlaps[closest] > threshold, closest, row).astype(jnp.int32)
        sums = sums.at[slot].add(scores[row])
        step = scores[row] / jnp.where(sums[slot] > 0, sums[slot], 1)
        return (fused.at[slot].add(step * (boxes[row] - fused[slot])), sums), slot

    start = jnp.zeros_like(boxes), jnp.zeros_like(scores)
    _, slots = jax.lax.scan(join, start, jnp.arange(len(scores), dtype=jnp.int32))
    return slots
