"""Losses of masks and label maps, one value per map.

h w  height and width.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

TINY = 1e-16  # Squared probabilities that add up to less are none: 1 / size ** 2 must be finite.


def dice(
    probabilities: Float[Array, "*b h w"],
    targets: Real[Array, "*b h w"] | Bool[Array, "*b h w"],
) -> Float[Array, "*b"]:
    """One less the Dice coefficient of a soft mask and its truth.

        1 - 2 sum(p t) / (sum(p ** 2) + sum(t ** 2))

    Args:
      probabilities: p, 0 to 1; not logits.
      targets: t, 0 to 1, or Booleans.

    Returns:
      Losses, float32, 0 (equal, and both empty) to 1 (disjoint); no gradient where the truth is
      empty.

    Source:
      V-Net (Milletari et al. 2016, arXiv:1606.04797v1), section 3.
    """
    p, t = probabilities.astype(jnp.float32), targets.astype(jnp.float32)
    shared, size = jnp.sum(p * t, (-2, -1)), jnp.sum(p**2 + t**2, (-2, -1))
    empty = size < TINY
    return 1 - jnp.where(empty, 1, 2 * shared / jnp.where(empty, 1, size))
