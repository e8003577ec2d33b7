"""Square windows of a picture for a classifier of windows to be trained on.

m  windows, n objects of one image.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.geometry import boxes as box_ops

# Share of an object's sides that may be outside of a window that is drawn around it.
CUT_OFF = 0.4


def sample_windows(
    key: Any,
    boxes: Float[Array, "n 4"],
    objects: Bool[Array, " n"],
    size: Int[Array, "2"],
    *,
    n: int,
    object_sides: tuple[float, float],
    window_sides: tuple[float, float],
) -> Float[Array, "m 4"]:
    """Draws windows: half of them around objects, if there are any, the others anywhere.

    Args:
      key: A jax.random key.
      boxes: Of the objects, xyxy pixels.
      objects: False rows are none.
      size: (height, width) of the picture, pixels.
      n: How many windows.
      object_sides: Range of an object's longer side, relative to a window around it.
      window_sides: Range of the sides of windows that are anywhere, pixels; their logarithms are
        uniform.

    Returns:
      xyxy pixels, which may reach beyond the picture, as windows do that slide over a canvas. Those
      around objects may cut some of the object off; the centres of the others are in the picture.
    """
    keys = jax.random.split(key, 5)
    chosen = jax.random.categorical(keys[0], jnp.where(objects, 0.0, -jnp.inf), shape=(n,))
    centers, sides = box_ops.centers_and_sizes(boxes[chosen])
    low, high = object_sides
    side = jnp.max(sides, axis=1) / jax.random.uniform(keys[1], (n,), minval=low, maxval=high)
    room = (side[:, None] - sides) / 2 + CUT_OFF * sides
    centers += room * jax.random.uniform(keys[2], (n, 2), minval=-1.0, maxval=1.0)

    low, high = (jnp.log(x) for x in window_sides)
    any_side = jnp.exp(jax.random.uniform(keys[3], (n,), minval=low, maxval=high))
    limit = size[::-1].astype(jnp.float32)[None]
    any_side = jnp.minimum(any_side, jnp.maximum(jnp.max(limit), 1))
    any_center = jax.random.uniform(keys[4], (n, 2)) * limit

    around = (jnp.arange(n) < n // 2) & objects.any()
    center = jnp.where(around[:, None], centers, any_center)
    side = jnp.where(around, side, any_side)[:, None]
    return box_ops.from_centers_and_sizes(center, jnp.broadcast_to(side, center.shape))
