"""Which level of a feature pyramid a box is read from.

Shape letters: n boxes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def assign_levels(
    boxes: Float[Array, "n 4"],
    *,
    n_levels: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    min_level: int = 2,
) -> Int32[Array, " n"]:
    """Returns, for each box, the index of the pyramid level of its size.

        level = floor(canonical_level + log2(sqrt(w h) / canonical_size) + 1e-6)

    and the index is `level - min_level`, cut to `0 .. n_levels - 1`.

    Args:
      boxes: xyxy, pixels of the image. Boxes without area go to the lowest level.
      n_levels: How many levels the pyramid has, at least 1.
      canonical_size: Side of the box that `canonical_level` is for, pixels.
      canonical_level: log2 of that level's stride.
      min_level: log2 of the stride of the level with index 0.

    Source:
      Feature Pyramid Networks (Lin et al. 2017, arXiv:1612.03144v2), section 4.2, eq. 1.

    Departures:
      The 1e-6 is torchvision's: it keeps boxes at a threshold on the upper side of it.
    """
    if n_levels < 1:
        raise ValueError(f"n_levels must be at least 1. Got {n_levels}")
    if canonical_size <= 0:
        raise ValueError(f"canonical_size must be positive. Got {canonical_size}")
    sides = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    side = jnp.sqrt(sides[:, 0] * sides[:, 1])
    # Smaller than a millionth of a pixel is degenerate; log2(0) would be -inf.
    octaves = jnp.log2(jnp.maximum(side, 1e-6) / canonical_size)
    level = jnp.floor(canonical_level + octaves + 1e-6) - min_level
    return jnp.clip(level, 0, n_levels - 1).astype(jnp.int32)
