"""Areas, borders and the two ways to write a box.

boxes     (x1, y1, x2, y2), pixels, half-open; no area where x2 <= x1 or y2 <= y1.
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


def frames(sizes: Real[Array | np.ndarray, "*b 2"]) -> Float[Array, "*b 4"]:
    """Returns the boxes of whole images, float32.

    Args:
      sizes: (height, width) of each, pixels.
    """
    corners = jnp.asarray(sizes, jnp.float32)[..., ::-1]
    return jnp.concatenate([jnp.zeros_like(corners), corners], axis=-1)


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
