"""Greedy merging: boxes that agree become one, and what spoke for them is added up.

Unlike suppression it keeps no box as it was: the more windows see an object, the better its box and
the higher its score. Sizes are fixed, so it compiles once and can be vmapped; it takes as many
steps as there are merges, each of which looks for the least of n x n numbers and computes n of them
anew. Under vmap every image waits for the one with the most merges.

n  boxes of one image, k slots of the result
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import iou as iou_ops


class MergedBoxes(NamedTuple):
    """What is left after the last merge, best first; all 0 where not valid."""

    boxes: Float[Array, "k 4"]  # xyxy pixels.
    scores: Float[Array, " k"]  # Sums of what was merged: they may exceed 1.
    groups: Int[Array, " k"]
    valid: Bool[Array, " k"]


class _State(NamedTuple):
    boxes: Float[Array, "n 4"]
    scores: Float[Array, " n"]
    match: Float[Array, "n n"]  # Infinite where two rows are not to be merged.


def match_scores(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Returns how badly boxes agree: 0 for equal ones, about 2 for neighbours that touch.

        distance of the centers / mean side + 1 - intersection / mean area

    Args:
      a: xyxy pixels, sides >= 0.
      b: xyxy pixels, sides >= 0.

    Returns:
      >= 0, no unit. The mean side is that of the four sides of both boxes, the mean area that of
      the two; of boxes without area at one place it is 1.

    Source:
      OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 4.3.

    Departures:
      The paper adds distance and intersection in pixels, as they are, and merges the pair with the
      least sum, which would be one that does not intersect. Here it is the missing part of the
      intersection that is added, and both are relative to the boxes' size, so that a threshold
      holds for objects of any size.
    """
    (centers_a, sizes_a), (centers_b, sizes_b) = map(box_ops.centers_and_sizes, (a, b))
    apart = jnp.linalg.norm(centers_a[:, None] - centers_b[None], axis=-1)
    side = (jnp.mean(sizes_a, axis=1)[:, None] + jnp.mean(sizes_b, axis=1)[None]) / 2
    area_a, area_b = box_ops.area(a), box_ops.area(b)
    shared = iou_ops.pairwise_intersection_over_first(a, b) * area_a[:, None]
    area = (area_a[:, None] + area_b[None]) / 2
    return iou_ops.ratio(apart, side) + 1 - iou_ops.ratio(shared, area)


def merge_boxes(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    threshold: Real[Array, ""] | float | int,
    max_outputs: int,
) -> MergedBoxes:
    """Merges the two boxes of one group that match best, until none match well enough.

        merged box = mean of the two boxes        merged score = sum of the two scores

    Args:
      boxes: xyxy pixels.
      scores: >= 0.
      groups: Classes, any integers.
      valid: False rows do nothing.
      threshold: Of `match_scores`: two boxes merge where theirs is at most this.
      max_outputs: k, the number of slots, shared by all groups.

    Returns:
      The k boxes of highest score; of equal ones that of the lower row first. Of equally good
      pairs that with the lowest rows is merged. The gradient is not defined.

    Source:
      OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 4.3, steps d to g.

    Departures:
      Only boxes of one class merge; the paper is about one object an image and does not say.
    """
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be positive. Got {max_outputs}")
    n = len(scores)
    boxes, scores = jnp.where(valid[:, None], boxes, 0), jnp.where(valid, scores, 0)
    rows = jnp.arange(n, dtype=jnp.int32)
    alike = (groups[:, None] == groups[None]) & valid[:, None] & valid[None]
    alike &= rows[:, None] < rows[None]  # Each pair once.
    match = jnp.where(alike, match_scores(boxes, boxes), jnp.inf)

    def agree(state: _State) -> Bool[Array, ""]:
        return jnp.min(state.match, initial=jnp.inf) <= threshold

    def merge(state: _State) -> _State:
        first, second = jnp.divmod(jnp.argmin(state.match), n)
        box = (state.boxes[first] + state.boxes[second]) / 2
        merged = state.boxes.at[first].set(box).at[second].set(0)
        score = state.scores[first] + state.scores[second]
        # A pair is as before but for the merged box, and gone with the other.
        match = state.match.at[second].set(jnp.inf).at[:, second].set(jnp.inf)
        anew = match_scores(box[None], merged)[0]
        match = match.at[first].set(jnp.where(jnp.isinf(match[first]), jnp.inf, anew))
        column = jnp.where(jnp.isinf(match[:, first]), jnp.inf, anew)
        match = match.at[:, first].set(column)
        return _State(merged, state.scores.at[first].set(score).at[second].set(-1), match)

    start = _State(boxes, jnp.where(valid, scores, -1), match)
    state = jax.lax.while_loop(agree, merge, start) if n else start
    top, order = jax.lax.top_k(state.scores, min(max_outputs, n))
    missing = (0, max_outputs - len(top))
    found = jnp.pad(top >= 0, missing)
    return MergedBoxes(
        jnp.pad(state.boxes[order], (missing, (0, 0))),
        jnp.where(found, jnp.pad(top, missing), 0),
        jnp.where(found, jnp.pad(groups[order], missing), 0),
        found,
    )
