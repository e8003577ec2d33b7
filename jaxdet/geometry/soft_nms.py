"""Soft non-maximum suppression: boxes that overlap a better one lose score, not their place.

Sizes are fixed, so it compiles once and can be vmapped. It takes k steps of n overlaps each, and is
differentiable in scores and boxes for the order that they have.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms as nms_ops

_Decay = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class Decayed(NamedTuple):
    """Which boxes stay and what is left of their scores, best first."""

    indices: Int32[Array, " k"]  # Rows of the input; 0 where not valid.
    scores: Float[Array, " k"]  # 0 where not valid.
    valid: Bool[Array, " k"]


def soft_nms_linear(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float | int,
    score_threshold: float | int,
    max_outputs: int,
) -> Decayed:
    """Takes the best box, lowers the scores of those that overlap it, and so on with what is left.

        score <- score * (1 - IoU)    where IoU > iou_threshold

    Args:
      boxes: xyxy pixels.
      scores: Equal ones rank by lower index.
      groups: Any integers; only boxes of one group (a class) lower each other's scores.
      valid: False rows neither stay nor lower scores; nor do NaN scores.
      iou_threshold: Smaller overlaps cost nothing, 0 to 1.
      score_threshold: Boxes whose score is not above it, at first or at last, go; >= 0.
      max_outputs: k, the number of slots, shared by all groups.

    Returns:
      The first k boxes of the greedy order, all groups together.

    Source:
      Soft-NMS (Bodla et al. 2017, arXiv:1704.04503v2), section 3 and figure 2.

    Departures:
      An IoU at the threshold costs nothing, as in the authors' code; in the paper it does.
    """
    threshold = nms_ops.float32_at_most(iou_threshold)

    def decay(iou: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.where(iou > threshold, 1 - iou, 1)

    return _soft_nms(decay, boxes, scores, groups, valid, score_threshold, max_outputs)


def soft_nms_gaussian(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    sigma: float | int,
    score_threshold: float | int,
    max_outputs: int,
) -> Decayed:
    """As `soft_nms_linear`, with a penalty that has no jump.

        score <- score * exp(-IoU ** 2 / sigma)

    Args:
      boxes: xyxy pixels.
      scores: Equal ones rank by lower index.
      groups: Any integers; only boxes of one group (a class) lower each other's scores.
      valid: False rows neither stay nor lower scores; nor do NaN scores.
      sigma: What overlap costs little, squared, above 0; 0.5 in the paper.
      score_threshold: Boxes whose score is not above it, at first or at last, go; >= 0.
      max_outputs: k, the number of slots, shared by all groups.

    Returns:
      The first k boxes of the greedy order, all groups together.

    Source:
      Soft-NMS (Bodla et al. 2017, arXiv:1704.04503v2), section 3 and figure 2.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive. Got {sigma}")

    def decay(iou: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.exp(-(iou**2) / sigma)

    return _soft_nms(decay, boxes, scores, groups, valid, score_threshold, max_outputs)


def _soft_nms(
    decay: _Decay,
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    score_threshold: float | int,
    max_outputs: int,
) -> Decayed:
    if score_threshold < 0:
        raise ValueError(f"score_threshold must not be negative. Got {score_threshold}")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be positive. Got {max_outputs}")
    if len(scores) == 0:
        empty = jnp.zeros(max_outputs, bool)
        return Decayed(empty.astype(jnp.int32), empty.astype(scores.dtype), empty)
    groups, valid, scores = jnp.asarray(groups), jnp.asarray(valid), jnp.asarray(scores)
    boxes = jnp.where(valid[:, None], boxes, 0)

    # Scores of 0 are those of boxes that were taken, or that never count.
    def take_best(left: Float[Array, " n"], _: None):
        best = jnp.argmax(left).astype(jnp.int32)
        score = left[best]
        overlaps = iou_ops.pairwise_iou(boxes[best][None], boxes)[0]
        left = left * jnp.where(groups == groups[best], decay(overlaps), 1)
        return left.at[best].set(0), (best, score)

    start = jnp.where(valid & (scores > 0), scores, 0)
    _, (indices, scores) = jax.lax.scan(take_best, start, length=max_outputs)
    found = scores > score_threshold
    return Decayed(jnp.where(found, indices, 0), jnp.where(found, scores, 0), found)
