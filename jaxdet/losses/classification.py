"""Losses of classification, one value per row, and how rows are summed.

Values are float32 whatever the type of the logits.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Real

# A term of a loss: the sum over what it is about, and how many there are.
Term = tuple[Float[Array, ""], Float[Array, ""]]


def softmax_cross_entropy(
    logits: Float[Array, "*b k"], labels: Int[Array, "*b"]
) -> Float[Array, "*b"]:
    """Returns -log softmax(logits)[label], >= 0.

    Args:
      logits: One per class, background included.
      labels: 0 to k - 1; others give a loss of class 0 or k - 1, never NaN.
    """
    labels = jnp.clip(labels, 0, logits.shape[-1] - 1)
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )


def sigmoid_cross_entropy(
    logits: Float[Array, "*b"], targets: Real[Array, "*b"] | Bool[Array, "*b"]
) -> Float[Array, "*b"]:
    """Returns -t log(sigmoid(logit)) - (1 - t) log(1 - sigmoid(logit)), >= 0.

    Args:
      logits: Of one yes-or-no question each.
      targets: t, 0 to 1, or Booleans.
    """
    return optax.losses.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), targets.astype(jnp.float32)
    )


def weighted_sum(
    values: Float[Array, "*b"], weights: Real[Array, "*b"] | Bool[Array, "*b"]
) -> Term:
    """Returns the sum of weight * value and the sum of the weights, a term of a loss.

    A row of weight 0 adds nothing to the sum or to the gradient of `values`, even if its value
    is NaN or infinite. What made the value NaN must still have finite derivatives of its own: a
    gradient of 0 times an infinite one is NaN again.

    Args:
      values: Losses.
      weights: >= 0, or a mask.
    """
    weights = weights.astype(jnp.float32)
    used = jnp.where(weights != 0, values.astype(jnp.float32), 0)
    return jnp.sum(weights * used), jnp.sum(weights)
