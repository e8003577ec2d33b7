"""How much two boxes overlap: intersection over union and what became of it.

boxes     (x1, y1, x2, y2), pixels, half-open; no area where x2 <= x1 or y2 <= y1.
aligned   `iou`, `giou`, `diou`, `ciou` compare row i of one array with row i of the other.
pairwise  `pairwise_*` compare each row of one array with each row of the other.

Values and gradients are finite for all boxes without NaN: 0 / 0 is 0, corners beyond `FAR` count as
`FAR`, and areas under `TINY` are none, so that padded rows overlap nothing.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Corners are cut here, pixels, and areas are 0 below, square pixels: between the two, no product
# or quotient of the formulas or of their derivatives leaves float32.
FAR = 2.0**30
TINY = 1e-16

# x1, y1, x2, y2 one at a time: XLA's CPU code for a trailing axis of two is several times slower.
_Sides = tuple[Array, Array, Array, Array]


def iou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Intersection over union of aligned boxes: |A & B| / |A | B|.

    Args:
      a: xyxy pixels.
      b: xyxy pixels, aligned with `a`.

    Returns:
      Overlaps, 0 to 1; 0 where one of the two has no area.

    Source:
      PASCAL VOC (Everingham et al. 2010, IJCV 88), section 4.2, eq. 3.

    Departures:
      Sides are x2 - x1; VOC's whole pixels make them x2 - x1 + 1.
    """
    return _iou(_aligned(a), _aligned(b))


def giou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Generalized IoU of aligned boxes: IoU - |C - (A | B)| / |C|, C the smallest box around both.

    Args:
      a: xyxy pixels.
      b: xyxy pixels, aligned with `a`.

    Returns:
      -1 (far apart) to 1 (equal).

    Source:
      Generalized IoU (Rezatofighi et al. 2019, arXiv:1902.09630v2), algorithm 1.
    """
    return _giou(_aligned(a), _aligned(b))


def diou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Distance IoU of aligned boxes: IoU - d ** 2 / c ** 2.

    d is the distance of the centers, c the diagonal of the smallest box around both.

    Args:
      a: xyxy pixels.
      b: xyxy pixels, aligned with `a`.

    Returns:
      -1 (far apart) to 1 (equal).

    Source:
      Distance-IoU (Zheng et al. 2020, arXiv:1911.08287v1), eqs. 5-7.
    """
    return _diou(_aligned(a), _aligned(b))


def ciou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Complete IoU of aligned boxes: distance IoU less a term for their aspect ratios.

        v = (2 / pi * (atan(w_a / h_a) - atan(w_b / h_b))) ** 2
        CIoU = DIoU - alpha v,  alpha = v / (1 - IoU + v), a constant for the gradient

    Args:
      a: xyxy pixels.
      b: xyxy pixels, aligned with `a`.

    Returns:
      -2 to 1 (equal).

    Source:
      Distance-IoU (Zheng et al. 2020, arXiv:1911.08287v1), eqs. 8-11.

    Departures:
      The paper drops 1 / (w ** 2 + h ** 2) from the gradient of v; here, as in torchvision, the
      gradient is that of the formula.
    """
    return _ciou(_aligned(a), _aligned(b))


def pairwise_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """`iou` of each box of `a` with each of `b`."""
    return _iou(_rows(a), _columns(b))


def pairwise_giou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """`giou` of each box of `a` with each of `b`."""
    return _giou(_rows(a), _columns(b))


def pairwise_diou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """`diou` of each box of `a` with each of `b`."""
    return _diou(_rows(a), _columns(b))


def pairwise_ciou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """`ciou` of each box of `a` with each of `b`."""
    return _ciou(_rows(a), _columns(b))


def pairwise_intersection_over_first(
    a: Float[Array, "n 4"], b: Float[Array, "m 4"]
) -> Float[Array, "n m"]:
    """The part of each box of `a` that lies in each of `b`: |A & B| / |A|.

    What COCO's evaluation takes in place of IoU when `b` is a crowd region.

    Args:
      a: xyxy pixels.
      b: xyxy pixels.

    Returns:
      Overlaps, 0 to 1; 0 where one of the two has no area.
    """
    first, second = _rows(a), _columns(b)
    return ratio(_intersection(first, second), _area(first))


def ratio(part: Float[Array, "*b"], whole: Float[Array, "*#b"]) -> Float[Array, "*b"]:
    """Returns part / whole, 0 where there is no whole: an overlap of shapes of any kind.

    Args:
      part: An area, or another measure.
      whole: Of the same measure; under 1e-16 it counts as none, and has no gradient.
    """
    # The inner `where` keeps 0 / 0 out of the gradient.
    positive = whole > TINY
    return jnp.where(positive, part / jnp.where(positive, whole, 1), 0)


def _aligned(boxes: Float[Array, "*b 4"]) -> _Sides:
    boxes = jnp.clip(boxes, -FAR, FAR)
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _rows(boxes: Float[Array, "n 4"]) -> _Sides:
    x1, y1, x2, y2 = _aligned(boxes[:, None])
    return x1, y1, x2, y2


def _columns(boxes: Float[Array, "m 4"]) -> _Sides:
    x1, y1, x2, y2 = _aligned(boxes[None])
    return x1, y1, x2, y2


def _area(sides: _Sides) -> Array:
    x1, y1, x2, y2 = sides
    return _positive(x2 - x1) * _positive(y2 - y1)


def _intersection(a: _Sides, b: _Sides) -> Array:
    low_x, low_y = jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1])
    high_x, high_y = jnp.minimum(a[2], b[2]), jnp.minimum(a[3], b[3])
    return _positive(high_x - low_x) * _positive(high_y - low_y)


def _positive(side: Array) -> Array:
    """max(side, 0), with no gradient at 0: boxes that touch do not overlap."""
    return jnp.where(side > 0, side, 0)


def _around(a: _Sides, b: _Sides) -> _Sides:
    """The smallest box around both."""
    low, high = jnp.minimum, jnp.maximum
    return low(a[0], b[0]), low(a[1], b[1]), high(a[2], b[2]), high(a[3], b[3])


def _iou(a: _Sides, b: _Sides) -> Array:
    shared = _intersection(a, b)
    return ratio(shared, _area(a) + _area(b) - shared)


def _giou(a: _Sides, b: _Sides) -> Array:
    shared = _intersection(a, b)
    union = _area(a) + _area(b) - shared
    hull = _area(_around(a, b))
    return ratio(shared, union) - ratio(hull - union, hull)


def _diou(a: _Sides, b: _Sides) -> Array:
    x1, y1, x2, y2 = _around(a, b)
    diagonal = (x2 - x1) ** 2 + (y2 - y1) ** 2
    distance_x = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    distance_y = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    # Above 1 only where corners are in the wrong order.
    return _iou(a, b) - jnp.minimum(ratio(distance_x**2 + distance_y**2, diagonal), 1)


def _ciou(a: _Sides, b: _Sides) -> Array:
    v = (2 / np.pi * (_aspect(a) - _aspect(b))) ** 2
    alpha = lax.stop_gradient(ratio(v, 1 - _iou(a, b) + v))
    return _diou(a, b) - alpha * v


def _aspect(sides: _Sides) -> Array:
    """atan(w / h), radians; 0 where the box has no sides."""
    x1, y1, x2, y2 = sides
    w, h = _positive(x2 - x1), _positive(y2 - y1)
    solid = w + h > TINY
    return jnp.where(solid, jnp.arctan2(w, jnp.where(solid, h, 1)), 0)
