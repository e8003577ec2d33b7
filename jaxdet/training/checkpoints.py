"""Checkpoints of a run, and what to read back from them.

    <directory>/last/<step>/{variables,training,metadata}   where to go on from
                            notes.json                      what was found out about it later
    <directory>/best/<step>/{variables,training,metadata}   what to predict with

Two managers, since one that ranks by a metric deletes a newer, worse checkpoint, and a run could
not go on from where it was. A save is written beside its place and moved there when it is whole.
Of several processes, the first alone reads and writes, so that they need no disk that all share.
"""

import contextlib
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet.training import processes
from jaxdet.training import state as states
from jaxdet.training.logging import write_atomically
from jaxdet.training.state import PyTree, TrainState

NOTES = "notes.json"
ONCE_THERE_IS_ROOM = "The same command goes on from there once there is room."
_TRIES = 20
_PREDICTS = ("params", "batch_stats", "frozen", "ema")


class CheckpointError(ValueError):
    """A checkpoint could not be written; the one before it is as it was."""


class Checkpoints:
    """The two series of checkpoints of one run.

    Several processes call every method together; all get what the first one finds.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        metadata: Mapping[str, Any] | None = None,
        keep: int = 2,
    ):
        """Opens the directory, or makes it.

        Args:
          directory: Of this run's checkpoints, such as `runs/x/checkpoints`.
          metadata: Config, class names, description of the model: whatever JSON can hold; it is
            written into every checkpoint. Paths become strings.
          keep: How many checkpoints stay in each series, above 1: the best so far must be found
            also after going back to the one before last.
        """
        if keep < 2:
            raise ValueError(f"keep must be above 1. Got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._metadata = json.loads(json.dumps(dict(metadata or {}), default=str))
        if processes.is_first():
            self._last = _manager(self.directory / "last", keep=keep)
            self._best = _manager(self.directory / "best", keep=keep)

    def last_step(self) -> int | None:
        """The step to go on from; None before the first save."""
        return processes.on_first(lambda: self._last.latest_step())

    def best_step(self) -> int | None:
        """The step of the best checkpoint; None before the first."""
        return processes.on_first(lambda: self._best.latest_step())

    def last_good(self) -> str:
        """Where a run goes on from after an error, for its message; for the first process alone."""
        # Orbax remembers what may be gone by now.
        steps = sorted(self._last.all_steps(), reverse=True)
        paths = [self.directory / "last" / str(step) for step in steps]
        there = [str(path) for path in paths if path.is_dir()]
        gone = f"there is none, {paths[0]} is gone" if paths else "there is none"
        return there[0] if there else gone

    def save_last(self, state: TrainState, *, notes: Mapping[str, Any] | None = None) -> None:
        """Saves where the run is, in place of an earlier save of this step; waits for the disk.

        Args:
          state: Arrays of the host, or the same on all devices.
          notes: Added to the metadata of this checkpoint.
        """
        processes.on_first(lambda: self._save(self._last, state, notes))

    def note_last(self, notes: Mapping[str, Any]) -> None:
        """Adds to the metadata of the last checkpoint, whose arrays stay as they are.

        Args:
          notes: In place of earlier ones; they are there whole or not at all.
        """
        step = self.last_step()

        def write() -> None:
            path = self.directory / "last" / str(step) / NOTES
            with self._explained(self._last, step):
                write_atomically(path, json.dumps(dict(notes)) + "\n")

        processes.on_first(write)

    def save_best(self, state: TrainState, *, notes: Mapping[str, Any] | None = None) -> None:
        """Saves the best so far, in place of an earlier save of this step; waits for the disk.

        Args:
          state: Arrays of the host, or the same on all devices.
          notes: Added to the metadata of this checkpoint, such as the metrics.
        """
        processes.on_first(lambda: self._save(self._best, state, notes))

    def last_metadata(self) -> dict[str, Any]:
        """Metadata and notes of the checkpoint to go on from; reads no arrays."""
        step = self.last_step()
        if step is None:
            raise ValueError(f"There is no checkpoint to read. Got {self.directory}")
        later = self.directory / "last" / str(step) / NOTES

        def read() -> dict[str, Any]:
            notes = json.loads(later.read_text()) if later.is_file() else {}
            return _read(self._last, step, ("metadata",))["metadata"] | notes

        return processes.on_first(read)

    def restore(self, like: TrainState) -> TrainState:
        """The state of the last checkpoint.

        Args:
          like: A state of the same shapes and types; its values are not read.

        Returns:
          Arrays of the host.

        Raises:
          ValueError: Where the checkpoint has other arrays; it names them.
        """
        step = self.last_step()
        if step is None:
            raise ValueError(f"There is no checkpoint to restore. Got {self.directory}")

        def read() -> TrainState:
            items = _read(self._last, step, ("variables", "training"))
            found = states.by_path(items["variables"]) | items["training"]
            return _fill(like, found, where=self.directory / "last" / str(step))

        return processes.on_first(read)

    def discard_best_after(self, step: int) -> None:
        """Drops best checkpoints of a future that is about to be computed again."""

        def discard() -> None:
            for later in [s for s in self._best.all_steps() if s > step]:
                self._best.delete(later)

        processes.on_first(discard)

    def close(self) -> None:
        """Waits for the last save, lets go of the directory."""
        if processes.is_first():
            self._last.close()
            self._best.close()

    def _save(
        self, manager: ocp.CheckpointManager, state: TrainState, notes: Mapping[str, Any] | None
    ) -> None:
        fields = jax.tree.map(np.asarray, jax.device_get(state._asdict()))
        step = int(fields["step"])
        variables = {name: fields.pop(name) for name in _PREDICTS}
        metadata = self._metadata | {"step": step} | dict(notes or {})
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            training=ocp.args.StandardSave(states.by_path(fields)),
            metadata=ocp.args.JsonSave(json.loads(json.dumps(metadata, default=str))),
        )
        with self._explained(manager, step):
            if step in manager.all_steps():
                manager.delete(step)
            manager.save(step, args=args)
            manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self, manager: ocp.CheckpointManager, step: int | None) -> Iterator[None]:
        """Says what there still is where the disk is full or taken away."""
        try:
            yield
        except (OSError, ValueError) as error:  # Orbax has a ValueError for both.
            series = pathlib.Path(manager.directory)
            for _ in range(_TRIES):  # A full disk needs the room; threads may still be writing.
                if not (parts := list(series.glob(f"{step}.*tmp*"))):
                    break
                for part in parts:
                    shutil.rmtree(part, ignore_errors=True)
                time.sleep(0.1)
            raise CheckpointError(
                f"Step {step} could not be saved in {series}: {error}. "
                f"Last good checkpoint: {self.last_good()}. {ONCE_THERE_IS_ROOM}"
            ) from error


def load_variables(path: str | pathlib.Path) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Reads what predicting needs, without the optimizer or the code that trained.

    Args:
      path: A run (`runs/x`: its best checkpoint, or the last if none is best), its
        `checkpoints`, a series (`runs/x/checkpoints/last`: its newest), or one step's directory.

    Returns:
      Variables for `model.apply`, averaged ones where the run kept an average, and the metadata.

    Raises:
      ValueError: Where there is no checkpoint.
    """
    manager, step = _locate(path)
    items = _read(manager, step, ("variables", "metadata"))
    manager.close()
    fields = items["variables"]
    averages = fields.pop("ema")
    return fields | averages, items["metadata"]


def read_metadata(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads config, class names and step of a checkpoint, and no arrays.

    Args:
      path: As in `load_variables`.

    Returns:
      What `Checkpoints` was given, "step", and the notes of that save.

    Raises:
      ValueError: Where there is no checkpoint.
    """
    manager, step = _locate(path)
    items = _read(manager, step, ("metadata",))
    manager.close()
    return items["metadata"]


def exist(path: str | pathlib.Path) -> bool:
    """Whether a run, or whatever else `load_variables` takes, has a checkpoint."""
    try:
        manager, _ = _locate(path)
    except ValueError:
        return False
    manager.close()
    return True


def _manager(directory: pathlib.Path, *, keep: int | None = None) -> ocp.CheckpointManager:
    """Opens a series: to write if `keep` is given, otherwise leaving the disk as it is."""
    writes = keep is not None
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
    this = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=False,
        cleanup_tmp_directories=writes,  # What a killed save left behind.
        enable_async_checkpointing=False,
        save_root_metadata=False,
        # Nobody else is waited for.
        multiprocessing_options=ocp.options.MultiprocessingOptions(this, active_processes={this}),
    )
    return ocp.CheckpointManager(directory, options=options)


def _locate(path: str | pathlib.Path) -> tuple[ocp.CheckpointManager, int]:
    path = pathlib.Path(path).absolute()
    if path.name.isdigit() and (path / "metadata").is_dir():
        return _manager(path.parent), int(path.name)
    roots = (path / "checkpoints", path)
    series = [root / name for root in roots for name in ("best", "last")]
    for directory in [*series, path]:
        if directory.is_dir() and any(child.name.isdigit() for child in directory.iterdir()):
            manager = _manager(directory)
            step = manager.latest_step()
            if step is not None:
                return manager, step
            manager.close()
    if not path.exists():
        raise ValueError(f"{path}: there is no such folder, so no checkpoint.")
    raise ValueError(f"{path}: holds no checkpoint, nor a run's checkpoints/best or /last.")


def _read(manager: ocp.CheckpointManager, step: int, names: tuple[str, ...]) -> dict[str, Any]:
    args = {
        name: ocp.args.JsonRestore() if name == "metadata" else ocp.args.StandardRestore()
        for name in names
    }
    restored = manager.restore(step, args=ocp.args.Composite(**args))
    return {name: restored[name] for name in names}


def _fill(like: TrainState, found: dict[str, Any], *, where: pathlib.Path) -> TrainState:
    """`like` with the arrays found, or an error that says what does not fit."""
    wanted = states.by_path(like._asdict())
    misfits = [
        f"{name}: the checkpoint has {_describe(found.get(name))}, "
        f"the run needs {_describe(wanted.get(name))}"
        for name in sorted(wanted.keys() | found.keys())
        if _describe(found.get(name)) != _describe(wanted.get(name))
    ]
    if misfits:
        shown = "\n  ".join(misfits[:20])
        raise ValueError(f"{where} does not fit in {len(misfits)} arrays:\n  {shown}")
    fields = like._asdict()
    filled = jax.tree_util.tree_map_with_path(lambda path, _: found[states.path_name(path)], fields)
    return states.TrainState(**filled)


def _describe(array: Any) -> str:
    return "nothing" if array is None else f"{np.dtype(array.dtype).name}{list(array.shape)}"
