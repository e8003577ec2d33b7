"""Which prediction answers for which object, one to one, for sets that predict without anchors.

n m  rows and columns of a table of costs, such as objects and predictions of one image.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int32


class Assignment(NamedTuple):
    """The column of each row; no two valid rows have the same."""

    index: Int32[Array, " n"]  # 0 where not valid.
    valid: Bool[Array, " n"]


def assign(
    cost: Float[Array, "n m"], valid_rows: Bool[Array, " n"], valid_columns: Bool[Array, " m"]
) -> Assignment:
    """Pairs rows with columns so that the sum of their costs is the least.

    As many pairs as possible are made, min(valid rows, valid columns) if all costs are finite, and
    of all ways to make that many one of the cheapest is taken.

    Args:
      cost: Of each pair, of any sign; a pair whose cost is infinite or NaN is not made.
      valid_rows: False rows are not paired.
      valid_columns: False columns are not paired.

    Returns:
      The pairs, optimal up to rounding; it is not said which of several optimal ways.

    Source:
      The Hungarian method (Kuhn 1955, Naval Research Logistics Quarterly 2), by `optax.assignment`.
      DETR (Carion et al. 2020, arXiv:2005.12872v3), section 3.1, eq. 1, assigns so.
    """
    cost = lax.stop_gradient(cost)
    n, m = cost.shape
    allowed = valid_rows[:, None] & valid_columns[None, :] & jnp.isfinite(cost)
    # From 0 to 1; divided first, so that neither the span nor 1 / span leaves float32.
    small = cost.astype(jnp.float32) / 16
    low = jnp.min(small, where=allowed, initial=jnp.inf)
    span = jnp.max(small, where=allowed, initial=-jnp.inf) - low
    span = jnp.where(span > jnp.finfo(jnp.float32).tiny, span, 1)
    pairs = jnp.where(allowed, (small - low) / span, jnp.inf)
    # A column of its own for each row, that costs more than all pairs: to stay without a pair.
    alone = jnp.where(jnp.eye(n, dtype=bool), min(n, m) + 1, jnp.inf)
    rows, columns = optax.assignment.hungarian_algorithm(jnp.concatenate([pairs, alone], axis=1))
    index = jnp.zeros(n, jnp.int32).at[rows].set(columns.astype(jnp.int32))
    valid = index < m
    return Assignment(jnp.where(valid, index, 0), valid)
