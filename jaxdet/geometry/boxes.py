"""Areas, overlaps and the two ways to write a box.

boxes     (x1, y1, x2, y2), pixels, half-open; no area where x2 <= x1 or y2 <= y1.
overlaps  no unit, 0 to 1; 0 / 0 is 0, so padded rows overlap nothing.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real


def area(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Returns max(w, 0) * max(h, 0), square pixels."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Float[Array, "*b 4"], size: Real[Array | np.ndarray, "2"]) -> Float[Array, "*b 4"]:
    """Moves corners outside of an image onto its border.

    Args:
      boxes: xyxy pixels.
      size: (height, width) of the image, pixels; may be traced.

    Returns:
      Boxes with 0 <= x <= width, 0 <= y <= height; those outside of the image have no area.
    """
    height, width = size[0], size[1]
    limit = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limit, boxes.shape))


def centers_and_sizes(
    boxes: Float[Array, "*b 4"],
) -> tuple[Float[Array, "*b 2"], Float[Array, "*b 2"]]:
    """Returns the centers (x, y) and the sides (w, h), pixels.

    Sides are signed: negative where x2 < x1 or y2 < y1. Inverse: `from_centers_and_sizes`.
    """
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


def from_centers_and_sizes(
    centers: Float[Array, "*b 2"], sizes: Float[Array, "*b 2"]
) -> Float[Array, "*b 4"]:
    """Returns xyxy boxes from centers (x, y) and sides (w, h), pixels."""
    return jnp.concatenate([centers - 0.5 * sizes, centers + 0.5 * sizes], axis=-1)


def pairwise_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of each box of `a` with each of `b`: |A & B| / |A | B|.

    Args:
      a: xyxy pixels.
      b: xyxy pixels.

    Returns:
      Overlaps, 0 to 1; 0 where one of the two has no area.

    Source:
      PASCAL VOC (Everingham et al. 2010, IJCV 88), section 4.2, eq. 3.

    Departures:
      Sides are x2 - x1; VOC's whole pixels make them x2 - x1 + 1.
    """
    shared = _pairwise_intersection(a, b)
    return _ratio(shared, area(a)[:, None] + area(b)[None, :] - shared)


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
    shared = _pairwise_intersection(a, b)
    return _ratio(shared, jnp.broadcast_to(area(a)[:, None], shared.shape))


def _pairwise_intersection(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    # One side at a time: XLA's CPU code for a trailing axis of two is several times slower.
    low_x = jnp.maximum(a[:, 0:1], b[None, :, 0])
    low_y = jnp.maximum(a[:, 1:2], b[None, :, 1])
    high_x = jnp.minimum(a[:, 2:3], b[None, :, 2])
    high_y = jnp.minimum(a[:, 3:4], b[None, :, 3])
    return jnp.maximum(high_x - low_x, 0) * jnp.maximum(high_y - low_y, 0)


def _ratio(part: Float[Array, "*b"], whole: Float[Array, "*b"]) -> Float[Array, "*b"]:
    # The inner `where` keeps 0 / 0 out of the gradient.
    positive = whole > 0
    return jnp.where(positive, part / jnp.where(positive, whole, 1), 0)
