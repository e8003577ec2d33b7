"""Losses of box regression, one value per box."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def smooth_l1(
    pred: Float[Array, "*b d"], target: Float[Array, "*b d"], *, beta: float | int
) -> Float[Array, "*b"]:
    """Squares of small errors, absolute values of large ones, summed over the last axis.

        e ** 2 / (2 * beta)  where |e| < beta,  |e| - beta / 2  elsewhere

    Args:
      pred: Predictions.
      target: What they should be.
      beta: Where the two pieces meet, unit of `pred`, >= 0; 0 is the L1 loss.

    Returns:
      Losses, float32, >= 0. The gradient at no error is 0, with beta = 0 too.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), eq. 3.

    Departures:
      `beta` is 1 in the paper; 1 / 9 in py-faster-rcnn's RPN and in torchvision.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative. Got {beta}")
    error = pred.astype(jnp.float32) - target.astype(jnp.float32)
    error *= jnp.sign(error)  # The gradient of jnp.abs is 1 at 0.
    if beta == 0:
        return jnp.sum(error, axis=-1)
    small = jnp.minimum(error, beta)
    # With q = min(|e|, beta): q ** 2 / (2 beta) + (|e| - q); one formula, no branch in gradients.
    return jnp.sum(small * small / (2 * beta) + error - small, axis=-1)
