"""What each image of a batch says about the parameters, before anything is averaged.

Gradients of single images find outliers and wrong labels, weigh images, and make private training:
all that `jax.vmap` of `jax.grad` gives, for any system that keeps the contract of `loss`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from jaxdet.structures import Batch
from jaxdet.training import steps
from jaxdet.training.state import PyTree
from jaxdet.training.steps import LossFn


def gradients(
    variables: Mapping[str, PyTree],
    batch: Batch,
    *,
    loss_fn: LossFn,
    train: bool,
    loss_weights: Mapping[str, float] | None = None,
) -> PyTree:
    """The gradient of each image's loss with respect to the parameters.

    An image's loss is that of a batch with nothing else in it,

        loss_i = sum_t weight_t * sum_it / max(count_it, 1)

    The gradients take as much memory as the parameters for each image.

    Args:
      variables: "params" and what else the model has.
      batch: With keys, one an image.
      loss_fn: `loss_fn(variables, batch, *, train) -> (terms, Aux)`.
      train: As in `loss_fn`. Batch norm then normalizes an image by its own statistics; with
        False, by the running ones.
      loss_weights: What each term is multiplied with, by name; 1 where not named.

    Returns:
      A tree like the parameters, with the images on a new leading axis. Zeros for a picture that
      only fills the batch.
    """

    def loss_of_one(params: PyTree, one: Batch) -> Float[Array, ""]:
        terms, _ = loss_fn({**variables, "params": params}, one, train=train)
        return steps.weighted_total(steps.means(terms), loss_weights=loss_weights)

    each = jax.tree.map(lambda x: x[:, None], batch)
    return jax.vmap(jax.grad(loss_of_one), in_axes=(None, 0))(variables["params"], each)


def norms(gradients: PyTree) -> Float[Array, " b"]:
    """The length of each image's gradient, over all parameters.

    Args:
      gradients: From `gradients`.
    """
    return jax.vmap(optax.tree.norm)(gradients)


def clipped_mean(gradients: PyTree, *, clip_norm: float) -> PyTree:
    """The mean of gradients, each of them at most `clip_norm` long.

        1 / b * sum_i g_i * min(1, clip_norm / |g_i|)

    No image moves it by more than `clip_norm / b`. With noise it is the step of private training:
    `optax.contrib.differentially_private_aggregate` takes what `gradients` returns.

    Args:
      gradients: From `gradients`.
      clip_norm: Above 0.

    Returns:
      A tree like the parameters.

    Source:
      Abadi et al. 2016 (arXiv:1607.00133v2), algorithm 1 without its noise.
    """
    n_images = len(jax.tree.leaves(gradients)[0])
    total: Any = optax.per_example_global_norm_clip(gradients, clip_norm)[0]
    return jax.tree.map(lambda x: x / n_images, total)
