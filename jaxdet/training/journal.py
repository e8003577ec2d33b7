"""What a run says of itself: numbers of each step, speed, progress; and when they go wrong.

The numbers of step i are read after step i + 1 is on its way, so that looking at the loss never
leaves the devices idle; only evaluations and checkpoints wait.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from jaxdet.structures import Batch
from jaxdet.training import logging, processes
from jaxdet.training.checkpoints import ONCE_THERE_IS_ROOM, Checkpoints
from jaxdet.training.logging import MetricsLog, WriteError, write_atomically
from jaxdet.training.state import TrainState

DIVERGED = "diverged.json"
_WINDOW, _FEWEST = 100, 20  # Steps whose median a loss is held against, at most and at least.
_IMPORTED = time.perf_counter()


class TrainingDiverged(RuntimeError):
    """The loss, its gradient or the state is no number any more, or far from what it was."""


class _Step(NamedTuple):
    number: int
    metrics: Mapping[str, Any]
    read: tuple[Any, Any]  # Positions and records of this process's pictures.
    n_images: int


class Journal:
    """Reads the numbers of each step one step late: checks, logs and shows them."""

    def __init__(
        self,
        log: MetricsLog | None,
        checkpoints: Checkpoints | None,
        *,
        steps: int,
        every: int,
        progress: bool,
        explosion: float | None = None,
    ):
        """Begins at the first step of this start.

        Args:
          log: Where to write; None to write nothing.
          checkpoints: Of the run; read for messages only.
          steps: Updates of the whole run.
          every: Updates between rows.
          progress: Whether to draw a progress bar.
          explosion: How many times its running median a loss or gradient norm may be.
        """
        self._log, self._checkpoints = log, checkpoints
        self._steps, self._every, self._progress = steps, every, progress
        self._explosion = explosion
        self._recent: dict[str, collections.deque[float]] = {
            name: collections.deque(maxlen=_WINDOW) for name in ("loss", "grad_norm")
        }
        self._pending: _Step | None = None
        self._begun = self._window = time.perf_counter()
        self._before = 0.0  # Seconds of earlier starts.
        self._waited = self._idle = 0.0
        self._n_steps = self._n_images = 0
        self._first: dict[str, float] = {}  # How long the start took, until it is logged.
        self._is_first = True

    @contextlib.contextmanager
    def begin(self, start: int) -> Iterator[None]:
        """Shows the progress bar while the run lasts.

        Args:
          start: Updates made so far.

        Raises:
          WriteError: Where the log cannot be written; it names the last good checkpoint.
        """
        if self._log is not None:
            self._before = logging.seconds(self._log.directory)
            (self._log.directory / DIVERGED).unlink(missing_ok=True)  # Of an earlier start.
        self._bar = tqdm.tqdm(
            total=self._steps,
            initial=start,
            disable=not (self._progress and processes.is_first()),
            unit="step",
        )
        with self._bar:
            try:
                yield
            except WriteError as error:
                if self._checkpoints is None or not processes.is_first():
                    raise
                raise WriteError(
                    f"{error}. Last good checkpoint: {self._checkpoints.last_good()}. "
                    f"{ONCE_THERE_IS_ROOM}"
                ) from error

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time spent here is no time of training."""
        begun = time.perf_counter()
        yield
        self._idle += time.perf_counter() - begun

    def seconds(self) -> float:
        """Time since this start."""
        return time.perf_counter() - self._begun

    def wait_for(self, data: Iterator[Batch]) -> Batch:
        """The next batch; counts how long it took.

        Args:
          data: Without end.
        """
        begun = time.perf_counter()
        try:
            batch = next(data)
        except StopIteration:
            raise ValueError("batches must not end before the run does.") from None
        self._waited += time.perf_counter() - begun
        return batch

    def add(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> None:
        """Takes a step that was just started, reads the one before it.

        Args:
          step: Its number, from 1.
          metrics: What the step returned.
          batch: What it read.
        """
        before = self._pending
        n_images = batch.positions.shape[0] * jax.process_count()
        self._pending = _Step(step, metrics, (batch.positions, batch.records), n_images)
        if before is not None:
            self._read(before)

    def catch_up(self) -> None:
        """Waits for the step that was started last."""
        before, self._pending = self._pending, None
        if before is not None:
            self._read(before)

    def check_finite(self, state: TrainState) -> None:
        """A finite gradient can still take a parameter out of range: such a state is not saved.

        Args:
          state: Of the last step.

        Raises:
          TrainingDiverged: Where it holds what is no number.
        """
        parts = {
            "parameters": state.params,
            "batch statistics": state.batch_stats,
            "averages": state.ema,
        }
        for name, tree in jax.device_get(parts).items():
            if not all(np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves(tree)):
                self._stop(int(state.step), {name: math.nan}, None, "Not finite")

    def _read(self, step: _Step) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(step.metrics)).items()}
        watched = {k: v for k, v in values.items() if k.startswith("loss") or k == "grad_norm"}
        if not all(map(math.isfinite, watched.values())):
            self._stop(step.number, watched, step.read, "Not finite")
        self._check_explosion(step, watched)
        self._n_steps += 1
        self._n_images += step.n_images
        self._bar.update()
        now = time.perf_counter()
        seconds = max(now - self._window - self._idle, 1e-9)
        losses = " ".join(f"{k} {v:.3g}" for k, v in watched.items())
        speed, wait = self._n_images / seconds, self._waited / seconds
        shown = f"{losses} {speed:.3g} images/s, data wait {wait:.0%}"
        self._bar.set_postfix_str(shown, refresh=False)
        due = is_due(step.number, self._every, self._steps)
        if self._is_first:  # Compiling belongs to the start, not to the speed.
            self._first = {"seconds_to_first_step": seconds_of_process()}
        if due:
            self._write(step.number, values, now)
        if self._is_first or due:
            self._window, self._waited, self._idle = now, 0.0, 0.0
            self._n_steps = self._n_images = 0
        self._is_first = False

    def _check_explosion(self, step: _Step, watched: Mapping[str, float]) -> None:
        for name, recent in self._recent.items():
            value = watched.get(name)
            if self._explosion is None or value is None:
                continue
            usual = statistics.median(recent) if len(recent) >= _FEWEST else math.inf
            if value > self._explosion * usual:
                how = f"{name} is {value / max(usual, 1e-30):.3g} times its median"
                self._stop(step.number, watched, step.read, f"Exploded ({how})")
            recent.append(value)

    def _write(self, step: int, values: dict[str, float], now: float) -> None:
        seconds = max(now - self._window - self._idle, 1e-9)
        timings = {
            "seconds": self._before + now - self._begun,
            "seconds_per_step": seconds / self._n_steps,
            "images_per_second": self._n_images / seconds,
            "data_wait": self._waited / seconds,  # A share, 0 to 1.
        }
        if self._log is not None:
            self._log.write(step, values | timings | self._first)
        self._first = {}

    def _stop(
        self, step: int, values: Mapping[str, float], read: tuple[Any, Any] | None, how: str
    ) -> None:
        last = None if self._checkpoints is None else self._checkpoints.last_step()
        where = "there is none"
        if self._checkpoints is not None:
            where = processes.on_first(self._checkpoints.last_good)
        shown = ", ".join(f"{name} = {value}" for name, value in values.items())
        records = None if read is None else all_records(*read)
        if self._log is not None:
            report = {
                "step": step,
                "how": how,
                "values": {name: str(value) for name, value in values.items()},
                "records": records,
                "checkpoint": last,
            }
            text = json.dumps(report, indent=2) + "\n"
            write_atomically(self._log.directory / DIVERGED, text)
        raise TrainingDiverged(
            f"{how} after step {step}: {shown}. Last good checkpoint: {where}. "
            "The same command with --replay says what was not finite first, in which pictures."
        )


def all_records(positions: Any, records: Any) -> list[int]:
    """The records of a global batch in its order, from all processes; each must ask.

    Args:
      positions: Of this process's images in the global batch.
      records: What they are in the data set.
    """
    parts = processes.gather((np.asarray(positions), np.asarray(records)))
    where, which = (np.concatenate(part) for part in zip(*parts, strict=True))
    return which[np.argsort(where)].tolist()


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something is done after a step.

    Args:
      step: Updates made.
      every: How often it is done; after the last update, too.
      steps: Updates of the whole run.
    """
    return step % every == 0 or step == steps


def seconds_of_process() -> float:
    """How long this process has been running; since the import, where the system does not say."""
    try:
        stat = pathlib.Path("/proc/self/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])  # Field 22, counted behind the name.
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - _IMPORTED
