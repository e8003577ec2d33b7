"""Learning rates of the detection papers, as optax schedules."""

from collections.abc import Sequence

import optax


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


def _check_steps(steps: int, warmup_steps: int) -> None:
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            "warmup_steps must be at least 0 and below steps. "
            f"Got warmup_steps={warmup_steps}, steps={steps}"
        )
