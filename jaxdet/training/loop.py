"""The training loop: resume, progress, evaluation, checkpoints, and every way to stop.

The numbers of step i are read after step i + 1 is on its way, so that looking at the loss never
leaves the devices idle; only evaluations and checkpoints wait.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from jaxdet.structures import Batch
from jaxdet.training import processes
from jaxdet.training.checkpoints import Checkpoints
from jaxdet.training.logging import MetricsLog
from jaxdet.training.state import TrainState

EvaluateFn = Callable[[TrainState], Mapping[str, float]]


class TrainingDiverged(RuntimeError):
    """The loss, its gradient or the state is no number any more."""


class Interrupted(Exception):
    """The run was asked to stop, and saved before it did.

    Attributes:
      step: Updates made so far.
      exit_code: What a shell expects of a process that ended on this signal.
    """

    def __init__(self, step: int, signum: int):
        super().__init__(f"Stopped by {signal.Signals(signum).name} after step {step}.")
        self.step = step
        self.exit_code = 128 + signum


def run(
    state: TrainState,
    *,
    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    checkpoints: Checkpoints | None = None,
    log: MetricsLog | None = None,
    evaluate: EvaluateFn | None = None,
    best_metric: str | None = None,
    evaluate_every: int = 1000,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    progress: bool = True,
) -> TrainState:
    """Trains until `steps` updates are made, going on from the last checkpoint if there is one.

    A run that is killed and started again ends in the same bits as one that is not. Of several
    processes, what the first one measures counts, and a signal to one stops all at the same step.

    Args:
      state: As `init_state` made it, placed where `step` wants it; `step` may use it up. With a
        checkpoint, only its shapes and places count.
      step: One update on all devices.
      batches: From the number of a batch, an iterator that begins with that batch.
      steps: Updates of the whole run, over all its starts.
      checkpoints: Where to save; None to save nothing.
      log: Where to write; None to write nothing.
      evaluate: Metrics of a state; logged as "eval/<name>".
      best_metric: Which of them picks the best checkpoint, the higher the better.
      evaluate_every: Updates between evaluations; there is one after the last update, too.
      checkpoint_every: Updates between checkpoints; there is one after the last update, too.
      log_every: Updates between rows of the log; there is one after the last update, too.
      progress: Whether to draw a progress bar.

    Returns:
      The state after the last update, placed as it was.

    Raises:
      TrainingDiverged: At the first loss or gradient that is not finite.
      Interrupted: After SIGTERM or SIGINT, with the step finished and saved. A second signal
        does what it does without this function.
    """
    _check_intervals(evaluate_every, checkpoint_every, log_every)
    if best_metric is not None and evaluate is None:
        raise ValueError(f"best_metric needs evaluate. Got {best_metric!r}")
    journal = _Journal(log, checkpoints, steps=steps, every=log_every, progress=progress)
    judge = _Judge(evaluate, best_metric, log, checkpoints)
    state, evaluated = _resume(state, checkpoints, log)
    start = int(state.step)
    if start > steps:
        raise ValueError(f"steps must not be below the checkpoint's {start}. Got {steps}")

    with _stop_signals() as stops, journal.begin(start):
        if not evaluated:
            with journal.aside():
                state = judge(state, start)
                _save(state, checkpoints, evaluated=True)
        data, votes = batches(start), processes.Votes()
        for done in range(start + 1, steps + 1):
            batch = journal.wait_for(data)
            state, metrics = step(state, batch)
            n_images = batch.positions.shape[0] * jax.process_count()
            journal.add(done, metrics, n_images=n_images)
            stopping = votes(stops[0] if stops else 0)  # Read once: a signal may come any time.
            judging = evaluate is not None and _due(done, evaluate_every, steps)
            if judging or stopping or _due(done, checkpoint_every, steps):
                journal.catch_up()
                with journal.aside():
                    if judging and not stopping:
                        state = judge(state, done)
                    if stopping or _due(done, checkpoint_every, steps):
                        # Who stops a process does not wait for an evaluation.
                        _save(state, checkpoints, evaluated=not (judging and stopping))
            if stopping:
                raise Interrupted(done, stopping)
        journal.catch_up()
    return state


class _Journal:
    """Reads the numbers of each step one step late: checks, logs and shows them."""

    def __init__(
        self,
        log: MetricsLog | None,
        checkpoints: Checkpoints | None,
        *,
        steps: int,
        every: int,
        progress: bool,
    ):
        self._log, self._checkpoints = log, checkpoints
        self._steps, self._every, self._progress = steps, every, progress
        self._pending: tuple[int, Mapping[str, Any], int] | None = None
        self._begun = self._window = time.perf_counter()
        self._before = 0.0  # Seconds of earlier starts.
        self._waited = self._idle = 0.0
        self._n_steps = self._n_images = 0
        self._first: dict[str, float] = {}  # How long the start took, until it is logged.
        self._is_first = True

    @contextlib.contextmanager
    def begin(self, start: int) -> Iterator[None]:
        """Shows the progress bar while the run lasts."""
        self._before = 0.0 if self._log is None else self._log.seconds()
        self._bar = tqdm.tqdm(
            total=self._steps,
            initial=start,
            disable=not (self._progress and processes.is_first()),
            unit="step",
        )
        with self._bar:
            yield

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time spent here is no time of training."""
        begun = time.perf_counter()
        yield
        self._idle += time.perf_counter() - begun

    def wait_for(self, data: Iterator[Batch]) -> Batch:
        """The next batch; counts how long it took."""
        begun = time.perf_counter()
        try:
            batch = next(data)
        except StopIteration:
            raise ValueError("batches must not end before the run does.") from None
        self._waited += time.perf_counter() - begun
        return batch

    def add(self, step: int, metrics: Mapping[str, Any], *, n_images: int) -> None:
        """Takes a step that was just started, reads the one before it."""
        before, self._pending = self._pending, (step, metrics, n_images)
        if before is not None:
            self._read(*before)

    def catch_up(self) -> None:
        """Waits for the step that was started last."""
        before, self._pending = self._pending, None
        if before is not None:
            self._read(*before)

    def _read(self, step: int, metrics: Mapping[str, Any], n_images: int) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        watched = {k: v for k, v in values.items() if k.startswith("loss") or k == "grad_norm"}
        if not all(map(math.isfinite, watched.values())):
            raise TrainingDiverged(_diverged(step, watched, self._checkpoints))
        self._n_steps += 1
        self._n_images += n_images
        self._bar.update()
        now = time.perf_counter()
        seconds = max(now - self._window - self._idle, 1e-9)
        losses = " ".join(f"{k} {v:.3g}" for k, v in watched.items())
        speed, wait = self._n_images / seconds, self._waited / seconds
        shown = f"{losses} {speed:.3g} images/s, data wait {wait:.0%}"
        self._bar.set_postfix_str(shown, refresh=False)
        if self._is_first:  # Compiling belongs to the start, not to the speed.
            self._first = {"seconds_to_first_step": now - self._begun}
        if _due(step, self._every, self._steps):
            self._write(step, values, now)
        if self._is_first or _due(step, self._every, self._steps):
            self._window, self._waited, self._idle = now, 0.0, 0.0
            self._n_steps = self._n_images = 0
        self._is_first = False

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


class _Judge:
    """Evaluates, logs, keeps the best."""

    def __init__(
        self,
        evaluate: EvaluateFn | None,
        best_metric: str | None,
        log: MetricsLog | None,
        checkpoints: Checkpoints | None,
    ):
        self._evaluate, self._best_metric = evaluate, best_metric
        self._log, self._checkpoints = log, checkpoints

    def __call__(self, state: TrainState, step: int) -> TrainState:
        if self._evaluate is None:
            return state
        metrics = {name: float(value) for name, value in self._evaluate(state).items()}
        metrics = processes.on_first(lambda: metrics)  # Others may round otherwise.
        if self._log is not None:
            self._log.write(step, {f"eval/{name}": value for name, value in metrics.items()})
        if self._best_metric is None:
            return state
        if self._best_metric not in metrics:
            raise ValueError(
                f"best_metric must be one of {sorted(metrics)}. Got {self._best_metric!r}"
            )
        value = metrics[self._best_metric]
        if not value > float(state.best):
            return state
        best = jax.device_put(np.float32(value), state.best.sharding)
        state = state._replace(best=best)
        if self._checkpoints is not None:
            _check_finite(state, self._checkpoints)
            self._checkpoints.save_best(state, notes={"metrics": metrics})
        return state


def _resume(
    state: TrainState, checkpoints: Checkpoints | None, log: MetricsLog | None
) -> tuple[TrainState, bool]:
    """The state to go on from, and whether its evaluation is done; forgets what came later."""
    evaluated = True
    if checkpoints is not None and checkpoints.last_step() is not None:
        places = jax.tree.map(lambda x: x.sharding, state)
        state = jax.device_put(checkpoints.restore(state), places, may_alias=False)
        evaluated = checkpoints.last_metadata().get("evaluated", True)
    if checkpoints is not None:
        checkpoints.discard_best_after(int(state.step))
    if log is not None:
        log.truncate(int(state.step))
    return state, evaluated


def _save(state: TrainState, checkpoints: Checkpoints | None, *, evaluated: bool) -> None:
    if checkpoints is not None:
        _check_finite(state, checkpoints)
        checkpoints.save_last(state, notes={"evaluated": evaluated})


def _check_finite(state: TrainState, checkpoints: Checkpoints) -> None:
    """A finite gradient can still take a parameter out of range: such a state is not saved."""
    arrays = jax.tree.leaves(jax.device_get((state.params, state.batch_stats, state.ema)))
    if not all(np.isfinite(x.astype(np.float32)).all() for x in arrays):
        raise TrainingDiverged(_diverged(int(state.step), {"parameters": math.nan}, checkpoints))


def _diverged(step: int, losses: Mapping[str, float], checkpoints: Checkpoints | None) -> str:
    where = "there is none"
    if checkpoints is not None and checkpoints.last_step() is not None:
        where = str(checkpoints.directory / "last" / str(checkpoints.last_step()))
    shown = ", ".join(f"{name} = {value}" for name, value in losses.items())
    return f"Not finite after step {step}: {shown}. Last good checkpoint: {where}."


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _check_intervals(*intervals: int) -> None:
    if min(intervals) < 1:
        raise ValueError(
            "evaluate_every, checkpoint_every and log_every must be above 0. "
            f"Got {', '.join(map(str, intervals))}"
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT; after the first, the next one has its usual effect."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread listen.
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(signum: int, _: Any) -> None:
        received.append(signum)
        restore()

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
