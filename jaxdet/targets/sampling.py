"""Which anchors or proposals a training step looks at."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray


class Sample(NamedTuple):
    """Rows that were drawn: positives, then negatives, then padding."""

    index: Int32[Array, " k"]  # 0 where not valid.
    positive: Bool[Array, " k"]
    valid: Bool[Array, " k"]


def sample_balanced(
    key: PRNGKeyArray,
    positive: Bool[Array, " m"],
    negative: Bool[Array, " m"],
    *,
    size: int,
    positive_fraction: float | int,
) -> Sample:
    """Draws rows uniformly, without replacement, with a limited share of positives.

        positives = min(#positive, floor(size * positive_fraction))
        negatives = min(#negative, size - positives)

    Args:
      key: A jax.random key.
      positive: Rows to draw as positives.
      negative: Rows to draw as negatives, apart from the positive ones.
      size: k, the number of slots; may exceed m.
      positive_fraction: The largest share of positives, 0 to 1.

    Returns:
      The rows drawn; exactly the numbers above are valid.

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.1.3: 256 anchors, 1 : 1.
    """
    if size < 1:
        raise ValueError(f"size must be positive. Got {size}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be between 0 and 1. Got {positive_fraction}")
    noise = jax.random.uniform(key, positive.shape)
    positives, n_positive = _draw(noise, positive, int(size * positive_fraction))
    negatives, n_negative = _draw(noise, negative & ~positive, size)
    slots = jnp.arange(size, dtype=jnp.int32)
    is_positive = slots < n_positive
    valid = slots < n_positive + n_negative
    rows = jnp.concatenate([positives, negatives, jnp.zeros(1, jnp.int32)])
    skipped = positives.shape[0] - n_positive
    place = jnp.where(is_positive, slots, slots + skipped)
    return Sample(rows[jnp.where(valid, place, -1)], is_positive, valid)


def _draw(
    noise: Float[Array, " m"], mask: Bool[Array, " m"], most: int
) -> tuple[Int32[Array, " j"], Int32[Array, ""]]:
    """Returns the rows of `mask`, in random order and cut at `most`, and how many there are."""
    # Float32, not bits: XLA's fast top-k on CPUs is for float32 alone.
    _, rows = jax.lax.top_k(jnp.where(mask, noise, -1.0), min(most, mask.shape[0]))
    return rows.astype(jnp.int32), jnp.minimum(jnp.sum(mask, dtype=jnp.int32), most)
