"""Arithmetic whose every operation is rounded, as NumPy's and C++'s is.

A sample on the border of a map is in or out by its last bit, and so is the last cell of a bin or
the last pixel of a mask. XLA would multiply with 1 / n where one divides by a constant n, and fuse
products with sums; it does neither across a selection.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rounded(product: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns a product, rounded before it is added to something; inf for NaN."""
    return jnp.where(jnp.isnan(product), jnp.inf, product)


def divide(x: Float[Array, "*b"], n: int | Float[Array, "*#b"]) -> Float[Array, "*b"]:
    """Returns x / n, rounded correctly."""
    return x / jnp.where(jnp.isnan(x), 1, n).astype(x.dtype)
