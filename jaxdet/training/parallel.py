"""The same step on many devices: the state is on all of them, a batch is split between them.

state    [...]        replicated, no leading axis, so that whatever reads it sees one state
batch    [b, ...]     image i goes to device i // (b / devices)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdet.structures import Batch
from jaxdet.training.state import PyTree, TrainState

AXIS = "devices"  # What steps and synchronized norms sum over.

Devices = Sequence[Any]  # Of jax.Device, which type checkers take for a variable.
StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]


def parallel_train_step(
    step_fn: StepFn, *, axis_name: str = AXIS, devices: Devices | None = None
) -> StepFn:
    """Compiles a step with `jax.pmap`, over all local devices unless told otherwise.

    One device takes the same path, so that what is tested on one runs on eight.

    Args:
      step_fn: `train_step` with its options bound, this `axis_name` among them.
      axis_name: What `step_fn` sums over.
      devices: Where to run.

    Returns:
      A function of a state from `replicate`, which it uses up, and a batch whose size the number
      of devices divides. Returned metrics are the same on all devices and read like scalars.
    """
    devices = _devices(devices)
    mapped = jax.pmap(
        step_fn,
        axis_name=axis_name,
        in_axes=(None, 0),
        out_axes=None,  # pyright: ignore[reportArgumentType] - pmap takes what vmap takes.
        donate_argnums=0,
        devices=devices,
    )
    return lambda state, batch: mapped(state, split(batch, n_devices=len(devices)))


def sharded_train_step(
    step_fn: StepFn, *, axis_name: str = AXIS, devices: Devices | None = None
) -> StepFn:
    """Compiles a step with `jax.shard_map`; parameters come out as with `parallel_train_step`.

    Args:
      step_fn: As in `parallel_train_step`.
      axis_name: What `step_fn` sums over.
      devices: Where to run.

    Returns:
      As `parallel_train_step`.
    """
    devices = _devices(devices)
    # check_vma=True would hand the step gradients that are summed already.
    mapped = jax.shard_map(
        step_fn,
        mesh=_mesh(devices, axis_name),
        in_specs=(PartitionSpec(), PartitionSpec(axis_name)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    compiled = jax.jit(mapped, donate_argnums=0)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        _check_divides(batch, len(devices))
        return compiled(state, batch)

    return step


def parallel_eval_step(
    step_fn: Callable[..., PyTree],
    *,
    axis_name: str = AXIS,
    devices: Devices | None = None,
) -> Callable[..., PyTree]:
    """Compiles a validation step with `jax.pmap`.

    Args:
      step_fn: `eval_step` with its options bound, this `axis_name` among them.
      axis_name: What `step_fn` sums over.
      devices: Where to run.

    Returns:
      A function of a key, replicated variables and a batch that gives sums over all devices.
    """
    devices = _devices(devices)
    mapped = jax.pmap(
        step_fn,
        axis_name=axis_name,
        in_axes=(None, None, 0),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=devices,
    )
    return lambda key, variables, batch: mapped(
        key, variables, split(batch, n_devices=len(devices))
    )


def parallel_map(
    fn: Callable[..., PyTree],
    *,
    axis_name: str = AXIS,
    devices: Devices | None = None,
) -> Callable[..., PyTree]:
    """Compiles a function of each image, such as `detect`, with `jax.pmap`.

    Args:
      fn: `fn(variables, images)`; what it returns has the images on the leading axis.
      axis_name: The name of the mapped axis, for models whose norms sum over it.
      devices: Where to run.

    Returns:
      `fn` for all images at once: the results are in the order of the images.
    """
    devices = _devices(devices)
    mapped = jax.pmap(fn, axis_name=axis_name, in_axes=(None, 0), devices=devices)

    def run(variables: PyTree, images: PyTree) -> PyTree:
        out = mapped(variables, split(images, n_devices=len(devices)))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    return run


def replicate(tree: PyTree, *, axis_name: str = AXIS, devices: Devices | None = None) -> PyTree:
    """Puts a copy of every array on every device, without a leading axis.

    Args:
      tree: Arrays of the host or of one device.
      axis_name: As given to the step.
      devices: As given to the step.

    Returns:
      The same values and shapes, placed.
    """
    placed = NamedSharding(_mesh(_devices(devices), axis_name), PartitionSpec())
    return jax.device_put(tree, placed, may_alias=False)


def unreplicate(tree: PyTree) -> PyTree:
    """Reads replicated arrays back to the host.

    Args:
      tree: From `replicate` or from a parallel step.

    Returns:
      NumPy arrays of the same shapes.
    """
    return jax.tree.map(np.asarray, jax.device_get(tree))


def split(tree: PyTree, *, n_devices: int) -> PyTree:
    """Cuts the leading axis: [b, ...] to [n_devices, b / n_devices, ...].

    Args:
      tree: Arrays that share their leading axis.
      n_devices: Must divide that axis.

    Returns:
      The same tree of arrays, with one more axis.

    Raises:
      ValueError: Where `n_devices` does not divide the batch.
    """
    _check_divides(tree, n_devices)
    return jax.tree.map(lambda x: x.reshape(n_devices, -1, *x.shape[1:]), tree)


def _check_divides(tree: PyTree, n_devices: int) -> None:
    sizes = sorted({x.shape[0] for x in jax.tree.leaves(tree)})
    if len(sizes) != 1 or sizes[0] % n_devices:
        raise ValueError(
            f"The batch size must be one multiple of the {n_devices} devices. Got {sizes}"
        )


def _devices(devices: Devices | None) -> list[Any]:
    if jax.process_count() > 1:
        raise ValueError(
            "Steps run on the devices of one process so far; a sum would leave out those of "
            f"the others. Got {jax.process_count()} processes"
        )
    return list(jax.local_devices() if devices is None else devices)


def _mesh(devices: list[Any], axis_name: str) -> Mesh:
    return Mesh(np.array(devices), (axis_name,), axis_types=(AxisType.Auto,))
