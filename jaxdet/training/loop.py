"""The training loop: resume, evaluation, checkpoints, and every way to stop."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet.structures import Batch
from jaxdet.training import processes
from jaxdet.training.checkpoints import Checkpoints
from jaxdet.training.journal import Journal, TrainingDiverged, is_due
from jaxdet.training.logging import MetricsLog
from jaxdet.training.signals import GRACE, Interrupted, Stops, stop_signals
from jaxdet.training.state import TrainState

__all__ = ["Evaluation", "Interrupted", "Limits", "TrainingDiverged", "run"]


OUT_OF_TIME = 1  # What a process says that is; signals have larger numbers.


class Evaluation(NamedTuple):
    """What is measured now and then, and what follows from it."""

    measure: Callable[[TrainState], Mapping[str, float]]  # Metrics of a state.
    every: int = 1000  # Updates; there is one after the last update, too.
    best_metric: str | None = None  # Picks the best checkpoint.
    lower_is_better: bool = False
    patience: int | None = None  # Evaluations without a better one, after which the run ends.


class Limits(NamedTuple):
    """Where a run ends before its last update."""

    minutes: float | None = None  # Of this start.
    steps: int | None = None  # Updates of this start.
    explosion: float | None = None  # A loss or gradient so many times its running median.
    grace: float = GRACE  # Seconds from a signal to the end of the process, whatever it does.


def run(
    state: TrainState,
    *,
    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    checkpoints: Checkpoints | None = None,
    log: MetricsLog | None = None,
    evaluation: Evaluation | None = None,
    limits: Limits = Limits(),
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
      evaluation: What to measure; logged as "eval/<name>".
      limits: Where to end earlier. At a limit of time or steps, and when patience is at its end,
        the state is evaluated and saved as after the last update.
      checkpoint_every: Updates between checkpoints; there is one after the last update, too.
      log_every: Updates between rows of the log; there is one after the last update, too.
      progress: Whether to draw a progress bar.

    Returns:
      The state after the last update, placed as it was.

    Raises:
      TrainingDiverged: At the first loss or gradient that is not finite, or beyond the limit.
      Interrupted: After SIGTERM or SIGINT, with the step finished and saved; while a process of
        its own waits for data, with the step before. A second signal does what it does without
        this function.
    """
    _check(evaluation, limits, checkpoint_every=checkpoint_every, log_every=log_every)
    journal = Journal(
        log,
        checkpoints,
        steps=steps,
        every=log_every,
        progress=progress,
        explosion=limits.explosion,
    )
    state, notes = _resume(state, checkpoints, log)
    start = int(state.step)
    if start > steps:
        raise ValueError(f"steps must not be below the checkpoint's {start}. Got {steps}")
    end = steps if limits.steps is None else min(steps, start + limits.steps)

    with (
        stop_signals(grace=limits.grace) as stops,
        journal.begin(start),
        _closed_after(batches(start)) as data,
    ):
        keeper = _Keeper(checkpoints, journal, stops)
        judge = _Judge(evaluation, log, keeper, misses=notes.get("misses", 0))
        if not notes.get("evaluated", True):
            with journal.aside():
                state = judge(state)
        votes = processes.Votes()
        for done in range(start + 1, end + 1):
            if judge.lost_patience:
                break
            with keeper.waiting(state, done - 1, misses=judge.misses):
                batch = journal.wait_for(data)
            state, metrics = step(state, batch)
            journal.add(done, metrics, batch)
            late = journal.seconds() > 60 * (limits.minutes or float("inf"))
            # Read once: a signal may come at any time.
            vote = votes(stops.received[0] if stops.received else OUT_OF_TIME * late)
            stopping = vote > OUT_OF_TIME
            ending = done == end or vote == OUT_OF_TIME
            judging = evaluation is not None and (ending or is_due(done, evaluation.every, steps))
            if judging or stopping or ending or is_due(done, checkpoint_every, steps):
                journal.catch_up()
                with journal.aside():
                    # Who stops a process does not wait for an evaluation.
                    keeper.save(state, evaluated=not judging, misses=judge.misses)
                    if stopping:
                        raise Interrupted(done, vote)
                    if judging:
                        state = judge(state)
            if ending:
                break
        # Whoever was asked to stop since the last step does not begin what follows the run.
        if received := [n for each in processes.gather(stops.received[:1]) for n in each]:
            raise Interrupted(int(state.step), received[0])
    return state


@contextlib.contextmanager
def _closed_after(data: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """An error keeps the frame that holds them, and so workers, until Python ends."""
    try:
        yield data
    finally:
        if isinstance(data, Generator):
            data.close()


class _Keeper:
    """Saves, and is not disturbed while it does."""

    def __init__(self, checkpoints: Checkpoints | None, journal: Journal, stops: Stops):
        self._checkpoints, self._journal, self._stops = checkpoints, journal, stops

    def save(self, state: TrainState, *, evaluated: bool, misses: int) -> None:
        if self._checkpoints is not None:
            self._journal.check_finite(state)
            with self._stops.saving():
                notes = {"evaluated": evaluated, "misses": misses}
                self._checkpoints.save_last(state, notes=notes)

    def note(self, state: TrainState, *, misses: int) -> None:
        if self._checkpoints is not None:
            notes = {"evaluated": True, "misses": misses, "best": float(state.best)}
            with self._stops.saving():
                self._checkpoints.note_last(notes)

    def save_best(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        if self._checkpoints is not None:
            self._journal.check_finite(state)
            with self._stops.saving():
                self._checkpoints.save_best(state, notes={"metrics": metrics})

    def may_stop(self, step: int) -> contextlib.AbstractContextManager[None]:
        if jax.process_count() > 1:  # The others would wait for this one.
            return contextlib.nullcontext()
        return self._stops.at_once(step)

    @contextlib.contextmanager
    def waiting(self, state: TrainState, step: int, *, misses: int) -> Iterator[None]:
        """Here a signal ends the wait, and so the run, with all steps saved that were made."""
        try:
            with self.may_stop(step):
                yield
        except Exception:  # A signal to all processes may be why there are no data.
            if not self._stops.received or jax.process_count() > 1:
                raise
            self._journal.catch_up()
            if self._checkpoints is not None and (self._checkpoints.last_step() or 0) < step:
                self.save(state, evaluated=True, misses=misses)
            raise Interrupted(step, self._stops.received[0]) from None


class _Judge:
    """Evaluates, logs, keeps the best, and loses patience."""

    def __init__(
        self,
        evaluation: Evaluation | None,
        log: MetricsLog | None,
        keeper: _Keeper,
        *,
        misses: int,
    ):
        self._evaluation, self._log, self._keeper = evaluation, log, keeper
        self.misses = misses  # Evaluations since the best.

    @property
    def lost_patience(self) -> bool:
        patience = None if self._evaluation is None else self._evaluation.patience
        return patience is not None and self.misses >= patience

    def __call__(self, state: TrainState) -> TrainState:
        """The state, which is saved already, with the best so far."""
        if self._evaluation is None:
            return state
        with self._keeper.may_stop(int(state.step)):
            measured = self._evaluation.measure(state)
            metrics = {name: float(value) for name, value in measured.items()}
            metrics = processes.on_first(lambda: metrics)  # Others may round otherwise.
        if self._log is not None:
            named = {f"eval/{name}": value for name, value in metrics.items()}
            self._log.write(int(state.step), named)
        state = self._keep_best(state, metrics)
        self._keeper.note(state, misses=self.misses)
        return state

    def _keep_best(self, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        name = self._evaluation and self._evaluation.best_metric
        if not self._evaluation or name is None:
            return state
        if name not in metrics:
            raise ValueError(f"best_metric must be one of {sorted(metrics)}. Got {name!r}")
        score = np.float32(-metrics[name] if self._evaluation.lower_is_better else metrics[name])
        if not score > float(state.best):
            # One that only a budget brought about does not wear patience out.
            self.misses += int(state.step) % self._evaluation.every == 0
            return state
        self.misses = 0
        state = state._replace(best=jax.device_put(score, state.best.sharding))
        self._keeper.save_best(state, metrics)
        return state


def _resume(
    state: TrainState, checkpoints: Checkpoints | None, log: MetricsLog | None
) -> tuple[TrainState, Mapping[str, Any]]:
    """The state to go on from, and the notes of its checkpoint; forgets what came later."""
    notes: Mapping[str, Any] = {}
    if checkpoints is not None and checkpoints.last_step() is not None:
        places = jax.tree.map(lambda x: x.sharding, state)
        restored, notes = checkpoints.restore(state), checkpoints.last_metadata()
        if "best" in notes:  # Of an evaluation after the state was saved.
            restored = restored._replace(best=np.float32(notes["best"]))
        state = jax.device_put(restored, places, may_alias=False)
    done, evaluated = int(state.step), notes.get("evaluated", True)
    if checkpoints is not None:
        checkpoints.discard_best_after(done if evaluated else done - 1)
    if log is not None:
        log.truncate(done, evaluated=evaluated)
    return state, notes


def _check(evaluation: Evaluation | None, limits: Limits, **intervals: int) -> None:
    if evaluation and evaluation.patience is not None and evaluation.best_metric is None:
        raise ValueError("patience needs a best_metric, which says what is better.")
    of_evaluation = {} if evaluation is None else evaluation._asdict()
    given = intervals | limits._asdict() | {k: of_evaluation.get(k) for k in ("every", "patience")}
    for name, value in given.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0. Got {value}")
