"""The step at which a run diverged, again: what in it is not finite first.

A run is a pure function of its seed, so nothing of the step need be kept: from the last checkpoint
on, the same batches give the same state before it, bit for bit on CPU.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxdet.structures import Batch
from jaxdet.training.checkpoints import Checkpoints
from jaxdet.training.journal import DIVERGED, all_records
from jaxdet.training.processes import gather
from jaxdet.training.state import PyTree, TrainState, by_path
from jaxdet.training.steps import Sums

N_LARGEST = 5


def diverged_step(directory: str | pathlib.Path) -> int:
    """Returns the number of the step at which a run stopped.

    Args:
      directory: Of the run.

    Raises:
      ValueError: Where it has not diverged.
    """
    path = pathlib.Path(directory) / DIVERGED
    if not path.is_file():
        raise ValueError(f"There is no step to replay: the run has not diverged. Got {directory}")
    return json.loads(path.read_text())["step"]


def replay(
    state: TrainState,
    number: int,
    *,
    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]],
    gradients: Callable[[TrainState, Batch], tuple[PyTree, Sums, PyTree]],
    batches: Callable[[int], Iterator[Batch]],
    checkpoints: Checkpoints,
    names: Sequence[str],
) -> list[str]:
    """Goes through an update once more, and says what is wrong with it.

    Args:
      state: As `loop.run` takes it; used where there is no checkpoint yet.
      number: Of the update, from 1.
      step: One update on all devices; may use up its state.
      gradients: `steps.gradients` on all devices; leaves its state as it is.
      batches: From the number of a batch, an iterator that begins with that batch.
      checkpoints: Of the run.
      names: Of the data set's pictures, by record.

    Returns:
      Lines: what is not finite in the order in which it arises, in pictures and boxes, the state
      before, losses, gradients by parameter, and the state afterwards; then the largest gradients.
    """
    if checkpoints.last_step() is not None:
        places = jax.tree.map(lambda x: x.sharding, state)
        state = jax.device_put(checkpoints.restore(state), places, may_alias=False)
    start = int(state.step)
    if start >= number:
        raise ValueError(f"number must be above the checkpoint's {start}. Got {number}")
    data = batches(start)
    for _ in range(start + 1, number):
        state, _ = step(state, next(data))
    batch = next(data)
    records = all_records(batch.positions, batch.records)
    lines = [
        f"Step {number} again, from the checkpoint of step {start}.",
        f"Pictures: {', '.join(f'{names[i]} (record {i})' for i in records)}.",
    ]
    grads, sums, stats = jax.device_get(gradients(state, batch))
    before = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    after, _ = step(state, batch)
    parts = {
        "the state before": before,
        "the losses (sum, count)": sums,
        "the gradient": grads,
        "the statistics afterwards": stats,
        "the parameters afterwards": jax.device_get(after.params),
    }
    pictures = {"images": batch.images, "instances": batch.instances}
    faults = [line for found in gather(_not_finite("the batch", pictures)) for line in found]
    faults += [line for where, tree in parts.items() for line in _not_finite(where, tree)]
    norms = {path: float(np.linalg.norm(np.float64(x))) for path, x in by_path(grads).items()}
    finite = [path for path, length in norms.items() if np.isfinite(length) and length > 0]
    largest = sorted(finite, key=lambda path: norms[path], reverse=True)[:N_LARGEST]
    return [
        *lines,
        *(faults or ["All is finite."]),
        "Losses: " + ", ".join(f"{k} = {s / max(n, 1):.4g}" for k, (s, n) in sums.items()) + ".",
        "Largest gradients: " + (", ".join(f"{p} {norms[p]:.4g}" for p in largest) or "none") + ".",
    ]


def _not_finite(where: str, tree: PyTree) -> list[str]:
    arrays = {path: np.asarray(leaf, np.float64) for path, leaf in by_path(tree).items()}
    found = [(path, x) for path, x in arrays.items() if not np.isfinite(x).all()]
    if not found:
        return []
    first = ", ".join(f"{path} ({(~np.isfinite(x)).sum()} of {x.size})" for path, x in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return [f"Not finite in {where}: {first}{more}."]
