"""Losses of classification, one value per row, and how rows are summed.

Values are float32 whatever the type of the logits.
"""

import jax
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


def sigmoid_focal_loss(
    logits: Float[Array, "*b"],
    targets: Bool[Array, "*b"],
    *,
    gamma: float | int = 2,
    alpha: float | int = 0.25,
) -> Float[Array, "*b"]:
    """Sigmoid cross-entropy with less weight on what is already right.

        -alpha_t (1 - p_t) ** gamma log(p_t)

    p_t is the probability given to the truth; alpha_t is alpha for true targets, else 1 - alpha.

    Args:
      logits: Of one yes-or-no question each.
      targets: The answers.
      gamma: How much less, >= 0; 0 is cross-entropy weighted by alpha_t.
      alpha: Weight of true targets, 0 to 1.

    Returns:
      Losses, >= 0, finite as their gradients are for logits up to 1e37.

    Source:
      RetinaNet (Lin et al. 2017, arXiv:1708.02002v2), section 3.2, eq. 5.
    """
    if gamma < 0:
        raise ValueError(f"gamma must not be negative. Got {gamma}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1. Got {alpha}")
    # Not optax's: its soft labels take three times as long and three times the memory.
    logits = logits.astype(jnp.float32)
    of_truth = jnp.where(targets, logits, -logits)
    focus = jnp.exp(-gamma * jax.nn.softplus(of_truth))
    return jnp.where(targets, alpha, 1 - alpha) * focus * jax.nn.softplus(-of_truth)


def hinge(scores: Float[Array, "*b"], targets: Bool[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns max(0, 1 - y * score), y = 1 for true targets, else -1: a support vector machine's.

    Args:
      scores: Of one yes-or-no question each; in R-CNN there is one for each class.
      targets: The answers.

    Source:
      R-CNN (Girshick et al. 2014, arXiv:1311.2524v5), section 2.3, "object category classifiers".
    """
    sides = jnp.where(targets, 1, -1).astype(jnp.float32)
    return optax.losses.hinge_loss(scores.astype(jnp.float32), sides)


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
