"""Which object each anchor is trained to find.

Letters: n objects and m anchors (or proposals) of one image.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxdet.geometry import iou as iou_ops


class Matches(NamedTuple):
    """The object of each anchor; anchors neither positive nor negative are ignored."""

    index: Int32[Array, " m"]  # The valid object it overlaps most; 0 where there is none.
    positive: Bool[Array, " m"]
    negative: Bool[Array, " m"]


def match(
    iou: Float[Array, "n m"],
    valid: Bool[Array, " n"],
    *,
    positive_iou: float | int,
    negative_iou: float | int,
    keep_best: bool,
) -> Matches:
    """Assigns to each anchor the object that it overlaps most, if enough.

    Args:
      iou: Of each object with each anchor, 0 to 1.
      valid: False objects match nothing.
      positive_iou: From here on an anchor is positive, 0 to 1.
      negative_iou: Below it an anchor is negative, 0 to `positive_iou`.
      keep_best: Whether the anchors that an object overlaps most (all of them, if several do
        equally) are positive at any IoU above 0, so that each object has at least one.

    Returns:
      The matches; of equally good objects, the first. No valid object: all are negative.

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.1.2.

    Departures:
      As in torchvision, an anchor that `keep_best` makes positive goes to its *own* best object,
      which may be another than the one that it is the best anchor of. Unlike torchvision, an
      object that overlaps no anchor does not make all anchors positive.
    """
    if not 0 <= negative_iou <= positive_iou <= 1:
        raise ValueError(
            "0 <= negative_iou <= positive_iou <= 1 must hold. "
            f"Got negative_iou={negative_iou}, positive_iou={positive_iou}"
        )
    # One more object, that is never valid, makes no objects at all an ordinary case.
    iou = jnp.pad(jnp.where(valid[:, None], iou, -1), ((0, 1), (0, 0)), constant_values=-1)
    best = jnp.max(iou, axis=0)
    positive = best >= positive_iou
    if keep_best:
        best_of_object = jnp.max(iou, axis=1, keepdims=True, initial=-1)
        positive |= jnp.any((iou == best_of_object) & (iou > 0), axis=0)
    index = jnp.argmax(iou, axis=0).astype(jnp.int32)
    return Matches(index, positive, (best < negative_iou) & ~positive)


def ignore_regions(
    matches: Matches,
    anchors: Float[Array, "m 4"],
    regions: Float[Array, "n 4"],
    region_valid: Bool[Array, " n"],
    *,
    iof: float | int = 0.5,
) -> Matches:
    """Ignores negative anchors in regions where objects are not labelled one by one.

    Args:
      matches: From `match`.
      anchors: xyxy pixels.
      regions: Crowds or difficult objects, xyxy pixels.
      region_valid: False regions hide nothing.
      iof: From this part of its area inside one region on, an anchor is ignored, 0 to 1.

    Returns:
      The matches with fewer negatives; positives stay.
    """
    if not 0 < iof <= 1:
        raise ValueError(f"iof must be above 0, at most 1. Got {iof}")
    inside = iou_ops.pairwise_intersection_over_first(anchors, regions) >= iof
    hidden = jnp.any(inside & region_valid[None, :], axis=1)
    return matches._replace(negative=matches.negative & ~hidden)
