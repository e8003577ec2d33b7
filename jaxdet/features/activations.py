"""The activation of most networks, in a form that XLA does not compute again and again."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns max(x, 0), and NaN for NaN; its slope at 0 is 0.

    Equal to `jax.nn.relu`. That is one operand's maximum, which XLA holds to be cheap: on CPU it
    computes the output of a residual block anew wherever it is read, from the convolutions of all
    blocks before it, which are kept for that. A choice has two operands and is computed once.
    """
    zero = jnp.zeros_like(x)
    return jax.lax.select(jax.lax.le(x, zero), zero, x)


@relu.defjvp
def _relu_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    y = relu(*primals)
    zero = jnp.zeros_like(y)
    return y, jax.lax.select(jax.lax.gt(y, zero), tangents[0], zero)
