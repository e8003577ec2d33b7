"""Rotated boxes: corners, overlaps and suppression.

boxes     (center x, center y, width, height, angle), pixels and degrees. A positive angle turns the
          box counter-clockwise as one sees it, y downwards: torchvision's cxcywhr, Detectron2's;
          OpenCV's with the other sign. No area where width <= 0 or height <= 0.

The shared area of A and B is found in the frame of B, |x| <= w / 2, |y| <= h / 2. There the
indicator of B is the x-derivative of clamp(x, -w / 2, w / 2) [|y| <= h / 2], so that by Green's
theorem

    |A & B| = contour integral around A of clamp(x, -w / 2, w / 2) [|y| <= h / 2] dy

which is a sum over the four edges of A, cut at the limits of B. It is continuous in the boxes:
edges that touch or coincide are no special case, as they are where crossings are found and sorted.
Float32 leaves overlaps off by about 1e-7 times the ratio of what the boxes extend over to their
shortest side.

Values and gradients are finite for all boxes without NaN, as in `jaxdet.geometry.iou`. Derivatives
are meant to be first ones only.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms as nms_ops


class _Box(NamedTuple):
    """Arrays of boxes, one of each number."""

    x: Array
    y: Array
    w: Array
    h: Array
    cos: Array
    sin: Array


def from_boxes(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 5"]:
    """Returns xyxy boxes, pixels, as rotated boxes with angle 0."""
    centers, sizes = box_ops.centers_and_sizes(boxes)
    return jnp.concatenate([centers, sizes, jnp.zeros_like(boxes[..., :1])], axis=-1)


def enclosing_boxes(boxes: Float[Array, "*b 5"]) -> Float[Array, "*b 4"]:
    """Returns the smallest xyxy boxes around rotated ones, pixels; undoes `from_boxes`."""
    box = _split(boxes)
    cos, sin = jnp.abs(box.cos), jnp.abs(box.sin)
    sizes = jnp.stack([box.w * cos + box.h * sin, box.w * sin + box.h * cos], axis=-1)
    return box_ops.from_centers_and_sizes(jnp.stack([box.x, box.y], axis=-1), sizes)


def corners(boxes: Float[Array, "*b 5"]) -> Float[Array, "*b 4 2"]:
    """Returns the corners (x, y), pixels.

        x = center x + u cos(angle) + v sin(angle)
        y = center y - u sin(angle) + v cos(angle)

    They are, before the turn, top left, top right, bottom right, bottom left:
    (u, v) = (-w, -h) / 2, (w, -h) / 2, (w, h) / 2, (-w, h) / 2.
    """
    box = _split(boxes)
    x, y = zip(*_corners(box), strict=True)
    return jnp.stack([jnp.stack(x, axis=-1), jnp.stack(y, axis=-1)], axis=-1)


def area(boxes: Float[Array, "*b 5"]) -> Float[Array, "*b"]:
    """Returns max(w, 0) * max(h, 0), square pixels."""
    return _area(_split(boxes))


def iou(a: Float[Array, "*b 5"], b: Float[Array, "*b 5"]) -> Float[Array, "*b"]:
    """Intersection over union of aligned rotated boxes: |A & B| / |A | B|.

    Args:
      a: Rotated boxes, pixels and degrees.
      b: Rotated boxes, aligned with `a`.

    Returns:
      Overlaps, 0 to 1; 0 where one of the two has no area.

    Departures:
      Detectron2 and torchvision find the corners and crossings that lie in both boxes and sort them
      around their hull; here the area is an integral, see the head of this module.
    """
    return _iou(_split(a), _split(b))


def pairwise_iou(a: Float[Array, "n 5"], b: Float[Array, "m 5"]) -> Float[Array, "n m"]:
    """`iou` of each box of `a` with each of `b`."""
    return _iou(_split(a[:, None]), _split(b[None]))


def nms(
    boxes: Float[Array, "n 5"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float | int,
    max_outputs: int,
) -> nms_ops.Kept:
    """`jaxdet.geometry.nms.nms` of rotated boxes."""
    groups = jnp.zeros(scores.shape, jnp.int32)
    return batched_nms(
        boxes, scores, groups, valid, iou_threshold=iou_threshold, max_outputs=max_outputs
    )


def batched_nms(
    boxes: Float[Array, "n 5"],
    scores: Float[Array, " n"],
    groups: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float | int,
    max_outputs: int,
) -> nms_ops.Kept:
    """`jaxdet.geometry.nms.batched_nms` of rotated boxes."""
    threshold = nms_ops.float32_at_most(iou_threshold)
    boxes, groups = jnp.asarray(boxes), jnp.asarray(groups)

    def suppresses(rows: Int32[Array, " s"], others: Int32[Array, " t"]) -> Bool[Array, "s t"]:
        same = groups[rows][:, None] == groups[others][None]
        return same & (pairwise_iou(boxes[rows], boxes[others]) > threshold)

    return nms_ops.suppress(suppresses, scores, valid, max_outputs=max_outputs)


def _split(boxes: Float[Array, "*b 5"]) -> _Box:
    boxes = jnp.clip(boxes, -iou_ops.FAR, iou_ops.FAR)
    x, y, w, h, angle = (boxes[..., i] for i in range(5))
    return _Box(x, y, w, h, *_cos_sin(angle))


def _cos_sin(degrees: Array) -> tuple[Array, Array]:
    """Exact at whole quarter turns, and as good as float32 allows after many turns."""
    degrees = lax.rem(degrees, jnp.full_like(degrees, 360))
    quarters = jnp.round(degrees / 90)
    rest = jnp.deg2rad(degrees - 90 * quarters)
    cos, sin = jnp.cos(rest), jnp.sin(rest)
    odd = quarters % 2 == 1
    sign = jnp.where(quarters % 4 >= 2, -1, 1)
    return sign * jnp.where(odd, -sin, cos), sign * jnp.where(odd, cos, sin)


def _corners(box: _Box) -> list[tuple[Array, Array]]:
    """The four corners (x, y) in the order of `corners`, in which x dy sums to a positive area."""
    ux, uy = 0.5 * box.w * box.cos, -0.5 * box.w * box.sin
    vx, vy = 0.5 * box.h * box.sin, 0.5 * box.h * box.cos
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [(box.x + u * ux + v * vx, box.y + u * uy + v * vy) for u, v in signs]


def _area(box: _Box) -> Array:
    return _positive(box.w) * _positive(box.h)


def _positive(side: Array) -> Array:
    """max(side, 0), with no gradient at 0."""
    return jnp.where(side > 0, side, 0)


def _iou(a: _Box, b: _Box) -> Array:
    area_a, area_b = _area(a), _area(b)
    shared = jnp.minimum(_intersection(a, b), jnp.minimum(area_a, area_b))
    return iou_ops.ratio(shared, area_a + area_b - shared)


def _intersection(a: _Box, b: _Box) -> Array:
    """The shared area; some rounding where it is next to none, 0 where an axis separates them."""
    within = _relative(a, b)
    points = _corners(within)
    edges = zip(points, points[1:] + points[:1], strict=True)
    shared = sum(_edge_integral(*start, *end, 0.5 * b.w, 0.5 * b.h) for start, end in edges)
    apart = _separated(within, b) | _separated(_relative(b, a), a)
    return jnp.where(apart, 0, _positive(jnp.asarray(shared)))


def _relative(a: _Box, b: _Box) -> _Box:
    """Boxes `a` in the frame of `b`: origin at its center, x along its width."""
    x, y = a.x - b.x, a.y - b.y
    return a._replace(
        x=x * b.cos - y * b.sin,
        y=x * b.sin + y * b.cos,
        cos=a.cos * b.cos + a.sin * b.sin,
        sin=a.sin * b.cos - a.cos * b.sin,
    )


def _separated(a: _Box, b: _Box) -> Array:
    """Whether a side of `b` has all of `a` beyond it; `a` is in the frame of `b`."""
    cos, sin = jnp.abs(a.cos), jnp.abs(a.sin)
    beyond_x = 2 * jnp.abs(a.x) >= b.w + a.w * cos + a.h * sin
    beyond_y = 2 * jnp.abs(a.y) >= b.h + a.w * sin + a.h * cos
    return beyond_x | beyond_y


def _edge_integral(
    x0: Array, y0: Array, x1: Array, y1: Array, limit_x: Array, limit_y: Array
) -> Array:
    """The integral of clamp(x) [|y| <= limit_y] dy on the way from one corner to the next."""
    low, high = jnp.clip(y0, -limit_y, limit_y), jnp.clip(y1, -limit_y, limit_y)
    # The part of the way between the limits; all of it for an edge along x.
    rises = jnp.abs(high - low) > iou_ops.TINY
    rise = jnp.where(rises, y1 - y0, 1)
    start = x0 + jnp.where(rises, low - y0, 0) / rise * (x1 - x0)
    end = x0 + jnp.where(rises, high - y0, 1) / rise * (x1 - x0)
    return (high - low) * _mean_clamped(start, end, limit_x)


def _mean_clamped(start: Array, end: Array, limit: Array) -> Array:
    """The mean of clamp(x, -limit, limit) for x from start to end."""
    low, high = jnp.minimum(start, end), jnp.maximum(start, end)
    # Where x passes the limits, as parts of the way. They move with the boxes, but the mean does
    # not change with them, to first order: clamp() is continuous there. An edge on a limit passes
    # it halfway, so that its gradient is the mean of those on both sides.
    middle, length = 0.5 * (low + high), jnp.maximum(high - low, iou_ops.TINY)
    enters = lax.stop_gradient(jnp.clip(0.5 - (limit + middle) / length, 0, 1))
    leaves = lax.stop_gradient(jnp.clip(0.5 + (limit - middle) / length, 0, 1))
    inside = low + 0.5 * (enters + leaves) * (high - low)
    return (leaves - enters) * inside + (1 - leaves - enters) * limit
