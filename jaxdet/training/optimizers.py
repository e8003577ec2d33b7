"""Optimizers of the detection papers, with learning rates that follow a parameter's path.

A path is "backbone/conv1/kernel": the keys of the parameter's tree.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from jaxdet.training.state import PyTree, by_path, path_name

# From a parameter's path to its share of the learning rate; 0 neither moves nor decays it, and
# takes no memory. A bool says whether it is trained.
RateFn = Callable[[str], float]


def sgd(
    schedule: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    rate: RateFn | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay, as torch has it.

    Args:
      schedule: Learning rate, or a function of the step.
      momentum: 0 to 1.
      weight_decay: Not applied to parameters of one axis: biases, scales of norms.
      clip_norm: Longest gradient over all parameters, before the decay; None for no clipping.
      rate: A parameter's share of the learning rate; 1 for all if None.

    Returns:
      The optimizer.
    """
    chain = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_has_axes),
        optax.sgd(schedule, momentum=momentum or None),
    )
    return _with_rates(_clipped(chain, clip_norm), rate)


def adamw(
    schedule: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    rate: RateFn | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Args:
      schedule: Learning rate, or a function of the step.
      weight_decay: Not applied to parameters of one axis: biases, scales of norms.
      clip_norm: Longest gradient over all parameters; None for no clipping.
      b1: Memory of the mean, 0 to 1.
      b2: Memory of the square, 0 to 1.
      rate: As in `sgd`.

    Returns:
      The optimizer.

    Source:
      Loshchilov and Hutter 2019, arXiv:1711.05101v3, algorithm 2.
    """
    adam = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_has_axes)
    return _with_rates(_clipped(adam, clip_norm), rate)


def lars(
    schedule: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    trust: float = 1e-3,
    rate: RateFn | None = None,
) -> optax.GradientTransformation:
    """SGD for large batches: each layer moves by a share of its own length.

    Args:
      schedule: Learning rate, or a function of the step.
      momentum: 0 to 1.
      weight_decay: Not applied to parameters of one axis: biases, scales of norms.
      clip_norm: Longest gradient over all parameters, before the decay; None for no clipping.
      trust: That share at a learning rate of 1.
      rate: As in `sgd`.

    Returns:
      The optimizer.

    Source:
      You et al. 2017, arXiv:1708.03888v3, algorithm 1.

    Departures:
      Parameters of one axis follow plain SGD; the length is divided by that of the decayed
      gradient, not by the sum of both lengths.
    """
    layered = optax.lars(
        schedule,
        weight_decay=weight_decay,
        weight_decay_mask=_has_axes,
        trust_coefficient=trust,
        trust_ratio_mask=_has_axes,
        momentum=momentum,
    )
    return _with_rates(_clipped(layered, clip_norm), rate)


def lamb(
    schedule: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    rate: RateFn | None = None,
) -> optax.GradientTransformation:
    """AdamW for large batches: each layer moves by a share of its own length.

    Args:
      schedule: Learning rate, or a function of the step.
      weight_decay: Not applied to parameters of one axis: biases, scales of norms.
      clip_norm: Longest gradient over all parameters; None for no clipping.
      b1: Memory of the mean, 0 to 1.
      b2: Memory of the square, 0 to 1.
      rate: As in `sgd`.

    Returns:
      The optimizer.

    Source:
      You et al. 2020, arXiv:1904.00962v5, algorithm 2.
    """
    layered = optax.lamb(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_has_axes)
    return _with_rates(_clipped(layered, clip_norm), rate)


def rate_by_patterns(rules: Sequence[tuple[str, float]]) -> RateFn:
    """Learning rates by patterns.

    Args:
      rules: (regular expression, factor). A path's factor is the product over all expressions
        that are found in it, 1 where none is; "^backbone/" is found at the beginning only.

    Returns:
      From a path to its factor.

    Raises:
      ValueError: Where a factor is negative, or an expression is none.
    """
    compiled = []
    for pattern, factor in rules:
        if not factor >= 0:
            raise ValueError(f"factors must be >= 0. Got {factor} for {pattern!r}")
        try:
            compiled.append((re.compile(pattern), factor))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return lambda path: math.prod(factor for found, factor in compiled if found.search(path))


def layer_decay(layers: Sequence[str], decay: float) -> list[tuple[str, float]]:
    """Rules by which each layer learns slower than the one above it.

    Args:
      layers: A regular expression for each layer, the one nearest to the picture first. What none
        of them is found in, such as a head, keeps the whole rate.
      decay: From a layer to the one below, 0 to 1.

    Returns:
      For `rate_by_patterns`: the last layer has the factor `decay`, the one before `decay` squared.

    Source:
      ULMFiT (Howard and Ruder 2018, arXiv:1801.06146v5), section 3.1, where the decay is 1 / 2.6.
    """
    return [(layer, decay ** (len(layers) - i)) for i, layer in enumerate(layers)]


def check_patterns(patterns: Sequence[str], params: PyTree) -> None:
    """Refuses patterns that no parameter has, which would silently do nothing.

    Args:
      patterns: Regular expressions.
      params: Parameters, or anything of their tree.

    Raises:
      ValueError: Names the pattern and parameters that there are.
    """
    paths = list(by_path(params))
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            shown = ", ".join(paths[:: max(1, len(paths) // 8)])
            raise ValueError(f"no parameter has {pattern!r} in its path. There are: {shown}, ...")


def _clipped(
    tx: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
    return tx if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), tx)


def _has_axes(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _with_rates(
    tx: optax.GradientTransformation, rate: RateFn | None
) -> optax.GradientTransformation:
    """Scales what the optimizer does, its decay included, as a rate of one's own would."""
    if rate is None:
        return tx

    def mapped(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), tree)

    def scale(updates: PyTree, _: PyTree) -> PyTree:
        return mapped(lambda path, x: rate(path) * x, updates)

    def labels(params: PyTree) -> PyTree:
        return mapped(lambda path, _: "moved" if rate(path) else "fixed", params)

    moved = optax.chain(tx, optax.stateless(scale))
    return optax.partition({"moved": moved, "fixed": optax.set_to_zero()}, labels)
