"""Everything a training run is: one record, the same on every device and in every checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32, Key, UInt32

from jaxdet.structures import Images

PyTree = Any


class TrainState(NamedTuple):
    """What a step reads and writes."""

    step: Int32[Array, ""]  # Updates made so far.
    key: UInt32[Array, " _"]  # Key data, never advanced: step keys are folded from it.
    params: PyTree  # What the loss is differentiated with respect to.
    opt_state: PyTree
    batch_stats: PyTree  # Running statistics; {} without batch norm.
    frozen: PyTree  # Statistics that never change; {} where there are none.
    ema: dict[str, PyTree]  # Averaged `params` and `batch_stats`; {} where nothing is averaged.
    best: Float32[Array, ""]  # Highest value of the metric that picks a checkpoint; -inf at first.


def initial_variables(
    key: Key[Array, ""], model: nn.Module, *, canvas: tuple[int, int]
) -> dict[str, PyTree]:
    """Draws a system's parameters.

    Args:
      key: Where they come from.
      model: Called with `Images`.
      canvas: (height, width) of a picture it can be called with.

    Returns:
      What `model.apply` takes.
    """
    pixels = jnp.zeros((1, *canvas, 3), jnp.uint8)
    return jax.jit(model.init)(key, Images(pixels, jnp.array([canvas], jnp.int32)))


def describe(variables: Mapping[str, PyTree]) -> str:
    """How large a model is, and what it runs on, for a person to read.

    Args:
      variables: "params" and what else the model has.
    """
    n_parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    device = jax.devices()[0].platform
    return f"{n_parameters / 1e6:.2f} M parameters, {jax.device_count()} {device}"


def init_state(
    key: Key[Array, ""] | UInt32[Array, " _"],
    variables: dict[str, PyTree],
    tx: optax.GradientTransformation,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step.

    The arrays are copied, so that a step that donates its state takes nothing from the caller.

    Args:
      key: Where all randomness of the run comes from.
      variables: "params" and, where the model has them, "batch_stats" and "frozen".
      tx: The optimizer.
      ema: Whether to keep a moving average beside the parameters; `train_step` then needs a decay.

    Returns:
      The state, on one device.

    Raises:
      ValueError: Where `variables` has no "params", or a collection that training cannot carry.
    """
    unknown = set(variables) - {"params", "batch_stats", "frozen"}
    if "params" not in variables or unknown:
        raise ValueError(
            "variables must hold params and may hold batch_stats and frozen. "
            f"Got {sorted(variables)}"
        )
    params = _copy(variables["params"])
    batch_stats = _copy(variables.get("batch_stats", {}))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jnp.array(_key_data(key)),
        params=params,
        opt_state=tx.init(params),
        batch_stats=batch_stats,
        frozen=_copy(variables.get("frozen", {})),
        ema={"params": _copy(params), "batch_stats": _copy(batch_stats)} if ema else {},
        best=jnp.full((), -jnp.inf, jnp.float32),
    )


def variables(state: TrainState) -> dict[str, PyTree]:
    """What `model.apply` takes, as of the last update.

    Args:
      state: Of any step.

    Returns:
      "params", "batch_stats" and "frozen"; the last two may be empty.
    """
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "frozen": state.frozen,
    }


def ema_variables(state: TrainState) -> dict[str, PyTree]:
    """What `model.apply` takes to predict: the average where there is one.

    Args:
      state: Of any step.

    Returns:
      As `variables`, with averaged parameters and statistics where the state keeps them.
    """
    return variables(state) | state.ema


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a leaf's keys as "backbone/conv1/kernel".

    Args:
      path: From `jax.tree_util.tree_map_with_path` and its kin.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by the names of their paths.

    Args:
      tree: Of any classes; a reader of the names need not have them.
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.array, tree)


def _key_data(key: Key[Array, ""] | UInt32[Array, " _"]) -> UInt32[Array, " _"]:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def held(variables: Mapping[str, PyTree], trainable: Callable[[str], bool]) -> dict[str, PyTree]:
    """Returns variables through whose other parameters no gradient goes, nor is one computed.

    Args:
      variables: Of any model.
      trainable: Says by a parameter's path whether it is trained.
    """

    def hold(path: Any, x: jax.Array) -> jax.Array:
        return x if trainable(path_name(path)) else jax.lax.stop_gradient(x)

    params = jax.tree_util.tree_map_with_path(hold, variables["params"])
    return {**variables, "params": params}
