"""Several models trained at once, as one step: seeds, learning rates or both on an axis.

k  members     Every array of a state has them on its leading axis.

A step of one model becomes a step of all by `jax.vmap`, so whatever `train_step` can do, they can.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxdet.training import state as states
from jaxdet.training.parallel import StepFn
from jaxdet.training.state import PyTree, TrainState


def init_states(
    keys: Key[Array, " k"],
    init: Callable[[Key[Array, ""]], dict[str, PyTree]],
    tx: optax.GradientTransformation,
    *,
    hyperparams: Mapping[str, Float[Any, " k"]] | None = None,
    ema: bool = False,
) -> TrainState:
    """The states of all members before the first step.

    Args:
      keys: Where each member's parameters, and all randomness of its training, come from. Equal
        keys make members that differ by their `hyperparams` alone.
      init: Draws variables, such as `lambda key: model.init(key, images)`.
      tx: The optimizer, the same for all; made by `optax.inject_hyperparams` where `hyperparams`
        are given.
      hyperparams: What each member has in place of the optimizer's own number, by name; numbers
        that follow a schedule cannot be replaced, but scaled: see docs/reliability.md.
      ema: As in `init_state`.

    Returns:
      One state with the members on the leading axis of every array.

    Raises:
      ValueError: Where the optimizer has no such number, or computes it anew at each step.
    """

    def one(key: Key[Array, ""]) -> TrainState:
        return states.init_state(key, init(key), tx, ema=ema)

    members = jax.jit(jax.vmap(one))(keys)
    if not hyperparams:
        return members
    numbers = dict(getattr(members.opt_state, "hyperparams", {}))
    # Those that follow a schedule are computed anew at each step.
    free = sorted(numbers.keys() - getattr(members.opt_state, "hyperparams_states", {}).keys())
    if unknown := hyperparams.keys() - free:
        raise ValueError(f"hyperparams must name some of {free}. Got {sorted(unknown)}")
    for name, values in hyperparams.items():
        numbers[name] = jnp.asarray(values, numbers[name].dtype)
    return members._replace(opt_state=members.opt_state._replace(hyperparams=numbers))


def together(step_fn: StepFn) -> StepFn:
    """A step of all members at once, on the same images; compile it as that of one model.

    Each member draws its own randomness for an image, from its own key.

    Args:
      step_fn: `train_step` with its options bound.

    Returns:
      A function of the members' states and a batch that gives their states and metrics, [k] each.
    """
    return jax.vmap(step_fn, in_axes=(0, None))


def member(states: PyTree, index: int) -> PyTree:
    """Takes one member out, to save it, to go on with it alone, or to predict with it.

    Args:
      states: Of all members, or any tree with the members on the leading axes.
      index: Which.

    Returns:
      The same tree for this member alone.
    """
    return jax.tree.map(lambda x: x[index], states)
