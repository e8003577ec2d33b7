"""Parts of an image, resized to one size.

h w c  the image.    n  boxes.    s  side of a crop.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def crop_resized(
    image: Float[Array, "h w c"], boxes: Float[Array, "n 4"], size: int
) -> Float[Array, "n s s c"]:
    """Cuts boxes out of an image, as it would be resized.

    Args:
      image: Pixels, or any map; outside of it all is 0.
      boxes: xyxy, cells; each side is resized on its own.
      size: Side of the crops, s.

    Returns:
      Crops, by linear interpolation, and by a triangle as wide as two cells of the crop where they
      have fewer cells than their boxes: what `jax.image.resize` with `antialias` gives of the whole
      image, at the same places. A box without width or height gives finite values.
    """
    height, width = image.shape[-3:-1]
    shape = (size, size, image.shape[-1])
    sides = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    # Farther out than one image there is nothing, and numbers stay small.
    limit = jnp.array([[width, height]], boxes.dtype)
    scales = size / sides
    shifts = -jnp.clip(boxes[:, :2], -sides - 1, limit + 1) * scales

    def crop(scale: Float[Array, "2"], shift: Float[Array, "2"]) -> Float[Array, "s s c"]:
        return jax.image.scale_and_translate(
            image, shape, (0, 1), scale[::-1], shift[::-1], method="linear", antialias=True
        )

    return jax.vmap(crop)(scales, shifts)
