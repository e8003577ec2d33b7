"""Which anchors or proposals a training step looks at.

m  anchors or proposals of one image, k slots of a sample.

A random sample has few rows of many, so its indices are returned. The hardest rows are known only
when all losses are, so theirs is a mask, to be the weights of those losses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray


class Sample(NamedTuple):
    """Rows that were drawn: positives, then negatives, then padding."""

    index: Int32[Array, " k"]  # 0 where not valid.
    positive: Bool[Array, " k"]
    valid: Bool[Array, " k"]


@jax.named_scope("sampling")
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


@jax.named_scope("sampling")
def hard_negatives(
    losses: Float[Array, " m"],
    positive: Bool[Array, " m"],
    negative: Bool[Array, " m"],
    *,
    ratio: float | int = 3,
) -> Bool[Array, " m"]:
    """Chooses the negatives with the largest losses, in proportion to the positives.

        negatives = min(#negative, floor(ratio * #positive))

    Args:
      losses: Of classification, with background as the label of negatives.
      positive: Rows with an object, in the loss anyway.
      negative: Rows to choose from, apart from the positive ones.
      ratio: Negatives for each positive, >= 0.

    Returns:
      The rows chosen, none without positives; of equal losses, the first.

    Source:
      SSD (Liu et al. 2016, arXiv:1512.02325v5), section 2.2, "hard negative mining".

    Departures:
      Where negatives do not suffice, torchvision fills up with positives, which then count twice.
    """
    if ratio < 0:
        raise ValueError(f"ratio must not be negative. Got {ratio}")
    count = jnp.floor(ratio * jnp.sum(positive, dtype=jnp.float32))
    return _hardest(losses, negative & ~positive, count)


def hardest(
    losses: Float[Array, " m"], valid: Bool[Array, " m"], *, size: int
) -> Bool[Array, " m"]:
    """Chooses the rows with the largest losses, objects or not (OHEM).

    Args:
      losses: Of all that is trained.
      valid: Rows to choose from.
      size: How many to choose, at most.

    Returns:
      The rows chosen; of equal losses, the first.

    Source:
      OHEM (Shrivastava et al. 2016, arXiv:1604.03540v1), section 4.1.

    Departures:
      Rows that overlap others of a larger loss are not suppressed first.
    """
    if size < 1:
        raise ValueError(f"size must be positive. Got {size}")
    return _hardest(losses, valid, jnp.float32(size))


def _hardest(
    losses: Float[Array, " m"], among: Bool[Array, " m"], count: Float[Array, ""]
) -> Bool[Array, " m"]:
    """Returns the `count` rows of `among` with the largest losses, NaN above all."""
    keys = jnp.where(among, lax.stop_gradient(losses), -jnp.inf)
    order = jnp.argsort(keys, descending=True)
    ranked = jnp.zeros(among.shape, bool).at[order].set(jnp.arange(len(order)) < count)
    return ranked & among


def _draw(
    noise: Float[Array, " m"], mask: Bool[Array, " m"], most: int
) -> tuple[Int32[Array, " j"], Int32[Array, ""]]:
    """Returns the rows of `mask`, in random order and cut at `most`, and how many there are."""
    # Float32, not bits: XLA's fast top-k on CPUs is for float32 alone.
    _, rows = lax.top_k(jnp.where(mask, noise, -1.0), min(most, mask.shape[0]))
    return rows.astype(jnp.int32), jnp.minimum(jnp.sum(mask, dtype=jnp.int32), most)
