"""Which object each anchor is trained to find.

Letters: n objects and m anchors (or proposals, or default boxes) of one image. An image with many
of both has more overlaps than memory, so boxes are taken one object at a time: it has overlaps with
all anchors at once, which is all that "the anchor it overlaps most" needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jaxdet.geometry import iou as iou_ops


class Matches(NamedTuple):
    """The object of each anchor; anchors neither positive nor negative are ignored."""

    index: Int32[Array, " m"]  # The valid object it overlaps most; 0 where there is none.
    positive: Bool[Array, " m"]
    negative: Bool[Array, " m"]


class _Best(NamedTuple):
    """What is known of each anchor after some of the objects."""

    iou: Float[Array, " m"]  # -1 before the first valid object.
    index: Int32[Array, " m"]
    claim: Int32[Array, " m"]  # The last object that claims it, -1 for none.


@jax.named_scope("matching")
def match(
    iou: Float[Array, "n m"],
    valid: Bool[Array, " n"],
    *,
    positive_iou: float | int,
    negative_iou: float | int,
    keep_best: bool,
) -> Matches:
    """Assigns to each anchor the object that it overlaps most, if enough.

    For boxes use `match_boxes`, whose memory does not grow with n * m.

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
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.1.2: 0.7, 0.3 and `keep_best`.
      RetinaNet (Lin et al. 2017, arXiv:1708.02002v2), section 4, "anchors": 0.5, 0.4, without.

    Departures:
      As in torchvision, an anchor that `keep_best` makes positive goes to its *own* best object,
      which may be another than the one that it is the best anchor of. Unlike torchvision, an
      object that overlaps no anchor does not make all anchors positive. Torchvision's RetinaNet
      has `keep_best` too.
    """
    _check(positive_iou, negative_iou)

    def step(best: _Best, item: tuple[Array, Array]) -> tuple[_Best, None]:
        return _add(best, item[1], item[0], _largest), None

    rows = jnp.arange(len(iou), dtype=jnp.int32)
    best, _ = lax.scan(step, _unmatched(iou.shape[1]), (rows, jnp.where(valid[:, None], iou, -1)))
    return _decide(best, positive_iou, negative_iou, keep_best)


@jax.named_scope("matching")
def match_boxes(
    objects: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    anchors: Float[Array, "m 4"],
    *,
    positive_iou: float | int,
    negative_iou: float | int,
    keep_best: bool,
) -> Matches:
    """`match` of boxes' IoU, in memory of a few times m whatever n is.

    Args:
      objects: xyxy pixels.
      valid: False objects match nothing.
      anchors: xyxy pixels.
      positive_iou: As in `match`.
      negative_iou: As in `match`.
      keep_best: As in `match`.
    """
    _check(positive_iou, negative_iou)
    best = _best_of_boxes(objects, valid, anchors, _largest)
    return _decide(best, positive_iou, negative_iou, keep_best)


@jax.named_scope("matching")
def match_priors(
    objects: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    anchors: Float[Array, "m 4"],
    *,
    positive_iou: float | int = 0.5,
) -> Matches:
    """MultiBox's rule: first each object takes its best anchor, then anchors choose as in `match`.

    Args:
      objects: xyxy pixels.
      valid: False objects match nothing.
      anchors: xyxy pixels.
      positive_iou: From here on an anchor is positive, below it negative, 0 to 1.

    Returns:
      The matches, none ignored. An object takes one anchor, the first of those it overlaps most;
      of two objects that take the same one, the later gets it, and the other may have none.

    Source:
      SSD (Liu et al. 2016, arXiv:1512.02325v5), section 2.2, "matching strategy".

    Departures:
      An object that overlaps no anchor takes none; in torchvision it takes the first.
    """
    _check(positive_iou, positive_iou)
    best = _best_of_boxes(objects, valid, anchors, _first_largest)
    index = jnp.where(best.claim >= 0, best.claim, best.index)
    return _decide(best._replace(index=index), positive_iou, positive_iou, True)


def ignore_regions(
    matches: Matches,
    anchors: Float[Array, "m 4"],
    regions: Float[Array, "n 4"],
    region_valid: Bool[Array, " n"],
    *,
    iof: float | int = 0.5,
    iou: float | int = 1.0,
    keep_best: bool = False,
) -> Matches:
    """Ignores negative anchors of regions where objects are not labelled one by one.

    An anchor around a small region is larger than it, and so not in it: `iou` and `keep_best` are
    for anchors that would not be negative, were the region an object.

    Args:
      matches: From `match`.
      anchors: xyxy pixels.
      regions: Crowds or difficult objects, xyxy pixels.
      region_valid: False regions hide nothing.
      iof: From this part of its area inside one region on, an anchor is ignored, 0 to 1.
      iou: From this IoU with a region on, likewise, 0 to 1.
      keep_best: Whether those that a region overlaps most are, too, as in `match`.

    Returns:
      The matches with fewer negatives; positives stay.
    """
    if not (0 < iof <= 1 and 0 <= iou <= 1):
        raise ValueError(f"iof must be above 0, iou at least 0, both at most 1. Got {iof}, {iou}")

    anchors, regions = lax.stop_gradient((anchors, regions))

    def hide(hidden: Array, region: tuple[Array, Array]) -> tuple[Array, None]:
        box, there = region
        inside = iou_ops.pairwise_intersection_over_first(anchors, box[None])[:, 0] >= iof
        overlap = iou_ops.pairwise_iou(anchors, box[None])[:, 0]
        own = overlap >= iou
        if keep_best:
            own |= (overlap > 0) & (overlap == jnp.max(overlap, initial=0))
        return hidden | ((inside | own) & there), None

    # Unrolled, as passes over the anchors are what takes time.
    hidden = jnp.zeros(len(anchors), bool)
    hidden, _ = lax.scan(hide, hidden, (regions, region_valid), unroll=4)
    return matches._replace(negative=matches.negative & ~hidden)


def _check(positive_iou: float | int, negative_iou: float | int) -> None:
    if not 0 <= negative_iou <= positive_iou <= 1:
        raise ValueError(
            "0 <= negative_iou <= positive_iou <= 1 must hold. "
            f"Got negative_iou={negative_iou}, positive_iou={positive_iou}"
        )


def _best_of_boxes(
    objects: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    anchors: Float[Array, "m 4"],
    claims: Callable[[Array], Array],
) -> _Best:
    """What all objects make of the anchors, one object after the other."""
    objects, anchors = lax.stop_gradient((objects, anchors))

    # Overlaps are used one step after they are made: as the loop's state they are in memory. Were
    # they computed anew for each use, the largest might be none of them, bitwise.
    def step(state: tuple[_Best, Array], item: tuple[Array, ...]) -> tuple[Any, None]:
        best, overlaps = state
        row, box, there = item
        best = _add(best, overlaps, row - 1, claims)
        return (best, jnp.where(there, iou_ops.pairwise_iou(box[None], anchors)[0], -1)), None

    start = _unmatched(len(anchors))
    # One more object, that is never valid: in its step the last one is used.
    rows = jnp.arange(len(objects) + 1, dtype=jnp.int32)
    items = rows, jnp.pad(objects, ((0, 1), (0, 0))), jnp.pad(valid, (0, 1))
    (best, _), _ = lax.scan(step, (start, start.iou), items)
    return best


def _unmatched(m: int) -> _Best:
    """No object has been seen."""
    return _Best(jnp.full(m, -1.0), jnp.zeros(m, jnp.int32), jnp.full(m, -1, jnp.int32))


def _add(
    best: _Best,
    overlaps: Float[Array, " m"],
    row: Int32[Array, ""],
    claims: Callable[[Array], Array],
) -> _Best:
    """Adds an object; its overlaps are -1 if it is not valid."""
    claimed = claims(overlaps) & (overlaps > 0)
    return _Best(
        jnp.maximum(best.iou, overlaps),
        jnp.where(overlaps > best.iou, row, best.index),
        jnp.where(claimed, row, best.claim),
    )


def _largest(overlaps: Float[Array, " m"]) -> Bool[Array, " m"]:
    """Which anchors an object overlaps most."""
    return overlaps == jnp.max(overlaps, initial=-1)


def _first_largest(overlaps: Float[Array, " m"]) -> Bool[Array, " m"]:
    """Which anchor is the first of those that an object overlaps most."""
    m = len(overlaps)
    column = jnp.arange(m, dtype=jnp.int32)
    return column == jnp.min(jnp.where(_largest(overlaps), column, m), initial=m)


def _decide(
    best: _Best, positive_iou: float | int, negative_iou: float | int, keep_claims: bool
) -> Matches:
    positive = best.iou >= positive_iou
    if keep_claims:
        positive |= best.claim >= 0
    return Matches(best.index, positive, (best.iou < negative_iou) & ~positive)
