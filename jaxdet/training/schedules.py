"""Learning rates and optimizers of the detection papers, as optax transformations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

PyTree = Any


def scaled(base: float, batch_size: int, *, reference: int = 16) -> float:
    """Linear scaling: the rate grows with the batch, `base * batch_size / reference`.

    Args:
      base: Learning rate at the reference batch size, above 0.
      batch_size: Images per update over all devices.
      reference: Images per update that `base` was tuned for.

    Returns:
      The learning rate for this batch size.

    Source:
      Accurate, Large Minibatch SGD (Goyal et al. 2017, arXiv:1706.02677v2), section 2.1.
    """
    if batch_size < 1 or reference < 1:
        raise ValueError(f"Batch sizes must be above 0. Got {batch_size}, {reference}")
    return base * batch_size / reference


def step_schedule(
    peak: float,
    *,
    steps: int,
    warmup_steps: int = 1000,
    warmup_factor: float = 1e-3,
    milestones: Sequence[float] = (16 / 26, 22 / 26),
    decay: float = 0.1,
) -> optax.Schedule:
    """Linear warm-up, then a constant rate that falls by `decay` at each milestone.

    Args:
      peak: Learning rate after the warm-up.
      steps: Length of the run, updates.
      warmup_steps: Length of the warm-up, updates; 0 for none.
      warmup_factor: First rate as a share of `peak`.
      milestones: When to fall, as shares of `steps`, 0 to 1, increasing.
      decay: What the rate is multiplied with at each milestone.

    Returns:
      From the number of updates made so far to the learning rate.

    Source:
      The defaults are torchvision's detection reference: 26 epochs, falls after 16 and 22,
      1000 steps of warm-up from a thousandth.
    """
    _check_steps(steps, warmup_steps)
    milestones = list(milestones)
    if milestones != sorted(milestones) or any(not 0 < m <= 1 for m in milestones):
        raise ValueError(f"milestones must increase within 0 to 1. Got {milestones}")
    falls = {round(m * steps): decay for m in milestones}
    constant = optax.piecewise_constant_schedule(1.0, falls)
    if warmup_steps == 0:
        return lambda step: peak * constant(step)
    # A product, not a join: milestones stay counted from the start of the run.
    warmup = optax.linear_schedule(warmup_factor, 1.0, warmup_steps)
    return lambda step: peak * warmup(step) * constant(step)


def cosine_schedule(
    peak: float, *, steps: int, warmup_steps: int = 1000, final_fraction: float = 0.0
) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine down to `final_fraction * peak` at the end.

    Args:
      peak: Learning rate after the warm-up.
      steps: Length of the run with its warm-up, updates.
      warmup_steps: Length of the warm-up, updates; 0 for none.
      final_fraction: Last rate as a share of `peak`, 0 to 1.

    Returns:
      From the number of updates made so far to the learning rate.

    Source:
      SGDR (Loshchilov and Hutter 2017, arXiv:1608.03983v5), eq. 5, without restarts.
    """
    _check_steps(steps, warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=final_fraction * peak,
    )


def sgd(
    schedule: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    trainable: Callable[[str], bool] | None = None,
) -> optax.GradientTransformation:
    """Momentum descent in torch's form: the decay joins the gradient before the momentum.

        gradient + weight_decay * parameter -> momentum -> times -learning rate

    Args:
      schedule: Learning rate, or a function of the step.
      momentum: 0 to 1.
      weight_decay: Not applied to parameters of one axis: biases, scales of norms.
      clip_norm: Longest gradient over all parameters, before the decay; None for no clipping.
      trainable: Says by a parameter's path, such as "backbone/conv1/kernel", whether it is
        updated; the others are neither moved nor decayed, and take no memory. None for all.

    Returns:
      The optimizer.
    """
    chain = optax.chain(
        _clipping(clip_norm),
        optax.add_decayed_weights(weight_decay, mask=_is_decayed),
        optax.sgd(schedule, momentum=momentum or None),
    )
    return _restricted(chain, trainable)


def adamw(
    schedule: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    trainable: Callable[[str], bool] | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Args:
      schedule: Learning rate, or a function of the step.
      weight_decay: Not applied to parameters of one axis: biases, scales of norms.
      clip_norm: Longest gradient over all parameters; None for no clipping.
      b1: Memory of the mean, 0 to 1.
      b2: Memory of the square, 0 to 1.
      trainable: As in `sgd`.

    Returns:
      The optimizer.

    Source:
      Loshchilov and Hutter 2019, arXiv:1711.05101v3, algorithm 2.
    """
    adam = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_decayed)
    return _restricted(optax.chain(_clipping(clip_norm), adam), trainable)


def _clipping(clip_norm: float | None) -> optax.GradientTransformation:
    return optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)


def _is_decayed(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _restricted(
    tx: optax.GradientTransformation, trainable: Callable[[str], bool] | None
) -> optax.GradientTransformation:
    if trainable is None:
        return tx

    def labels(params: PyTree) -> PyTree:
        def label(path: tuple[Any, ...], _: Any) -> str:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return "moved" if trainable(name) else "fixed"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"moved": tx, "fixed": optax.set_to_zero()}, labels)


def _check_steps(steps: int, warmup_steps: int) -> None:
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps must be within 0 to steps. Got {warmup_steps}, {steps}")
