"""A run that is stopped anywhere and started again is the run that was not."""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import checkpoints, logging, loop, parallel

STEPS = 9


class Killed(Exception):
    pass


def score(state):
    """Rises and falls, so that the best is not the last."""
    step = int(state.step)
    return {"score": float(np.sin(step)), "norm": jnp.abs(state.params["Dense_0"]["bias"]).sum()}


def evaluation(measure=score, **options):
    return loop.Evaluation(measure, **({"every": 4, "best_metric": "score"} | options))


SCORED = evaluation()


def train(directory, *, steps=STEPS, step=None, evaluation=SCORED, batches=toy.batches, **options):
    saved = checkpoints.Checkpoints(directory / "checkpoints", metadata={"classes": ["cat"]})
    log = logging.MetricsLog(directory)
    options = {"checkpoint_every": 2, "log_every": 1} | options
    try:
        return loop.run(
            parallel.replicate(toy.init()),
            step=step or toy.parallel_step(),
            batches=batches,
            steps=steps,
            checkpoints=saved,
            log=log,
            evaluation=evaluation,
            progress=False,
            **options,
        )
    finally:
        saved.close()
        log.close()


def killed_after(n):
    """A step that raises instead of the n-th update of this process."""
    left = itertools.count(n, -1)

    def step(state, batch):
        if next(left) == 0:
            raise Killed
        return toy.parallel_step()(state, batch)

    return step


def signalled_after(n, signum=signal.SIGTERM, *, step=None):
    """A step during which the process is asked to stop."""
    left = itertools.count(n, -1)

    def stopping_step(state, batch):
        if next(left) == 1:
            os.kill(os.getpid(), signum)
        return (step or toy.parallel_step())(state, batch)

    return stopping_step


def numbers(directory):
    """Rows without the clock's."""
    clock = (
        *("seconds", "seconds_per_step", "images_per_second", "data_wait"),
        "seconds_to_first_step",
    )
    rows = logging.read_rows(directory)
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stops: its directory and its bits."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, toy.to_bytes(train(directory))


def test_whole_run(whole):
    directory, _ = whole
    rows = logging.read_rows(directory)
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, STEPS + 1))
    assert [r["step"] for r in rows if "eval/score" in r] == [4, 8, 9]
    assert rows[0]["seconds_to_first_step"] > 0
    assert all(0 <= r["data_wait"] <= 1 for r in rows if "loss" in r)
    assert sorted(p.name for p in (directory / "checkpoints/last").iterdir()) == ["8", "9"]
    metadata = checkpoints.read_metadata(directory)
    assert metadata["step"] == 8  # sin(8) is the largest of 4, 8 and 9.
    assert metadata["metrics"]["score"] == pytest.approx(np.sin(8))


@pytest.mark.parametrize("stop", [1, 2, 4, 7])
def test_killed_and_resumed_is_the_same_run(whole, tmp_path, stop):
    with pytest.raises(Killed):
        train(tmp_path, step=killed_after(stop))
    assert toy.to_bytes(train(tmp_path)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])
    assert checkpoints.read_metadata(tmp_path)["step"] == 8


def test_killed_between_best_and_last(whole, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise Killed

    # Step 8: evaluated, logged, saved as best, but not noted as the place to go on from.
    monkeypatch.setattr(checkpoints.Checkpoints, "note_last", killed)
    with pytest.raises(Killed):
        train(tmp_path, checkpoint_every=8)
    monkeypatch.undo()
    assert toy.to_bytes(train(tmp_path)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])


def test_a_best_that_was_never_reached_again_is_forgotten(tmp_path, monkeypatch):
    note_last = checkpoints.Checkpoints.note_last

    def killed_at_8(self, notes):
        if self.last_step() == 8:
            raise Killed
        note_last(self, notes)

    monkeypatch.setattr(checkpoints.Checkpoints, "note_last", killed_at_8)
    with pytest.raises(Killed):
        train(tmp_path, checkpoint_every=4)
    monkeypatch.undo()
    assert checkpoints.read_metadata(tmp_path)["step"] == 8
    train(tmp_path, evaluation=evaluation(lambda state: {"score": -float(state.step)}))
    assert checkpoints.read_metadata(tmp_path)["step"] == 4


@pytest.mark.parametrize("stop", [3, 8])  # Step 8 is to be evaluated, 3 is nothing.
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_and_resumed_is_the_same_run(whole, tmp_path, stop, signum):
    handler = signal.getsignal(signum)
    with pytest.raises(loop.Interrupted, match=f"after step {stop}") as stopped:
        train(tmp_path, step=signalled_after(stop, signum))
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is handler
    assert checkpoints.read_metadata(tmp_path / "checkpoints/last")["step"] == stop
    assert toy.to_bytes(train(tmp_path)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])


def test_stopped_while_it_evaluates(whole, tmp_path):
    """It does not wait for the end of the evaluation, whose state is saved before it begins."""

    def slow(state):
        if int(state.step) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return score(state)

    begun = time.perf_counter()
    with pytest.raises(loop.Interrupted, match="after step 8"):
        train(tmp_path, evaluation=evaluation(slow), checkpoint_every=5)
    assert time.perf_counter() - begun < 30
    assert toy.to_bytes(train(tmp_path, checkpoint_every=5)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])


def stuck_after(n, *, error=None):
    """Batches that do not come after the n-th, or fail, while the process is asked to stop."""

    def batches(start):
        yield from itertools.islice(toy.batches(start), n - start)
        with contextlib.suppress(loop.Interrupted if error else ()):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        raise error

    return batches


@pytest.mark.parametrize("stop", [0, 3, 4, 8])  # Step 4 is saved, 8 is evaluated, too.
@pytest.mark.parametrize("error", [None, OSError("no disk")], ids=str)
def test_data_that_do_not_come_are_not_waited_for(whole, tmp_path, stop, error):
    begun = time.perf_counter()
    with pytest.raises(loop.Interrupted, match=f"SIGTERM after step {stop}"):
        train(tmp_path, batches=stuck_after(stop, error=error), checkpoint_every=4)
    assert time.perf_counter() - begun < 30
    saved = tmp_path / "checkpoints/last"
    assert not stop or checkpoints.read_metadata(saved)["step"] == stop
    assert toy.to_bytes(train(tmp_path, checkpoint_every=4)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])


def test_data_that_fail_by_themselves_are_an_error(tmp_path):
    def batches(start):
        yield toy.batch(start)
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        train(tmp_path, batches=batches)


def slow_batch(number):
    if number == 5:
        time.sleep(60)
    return toy.batch(number)


WITH_WORKERS = """
import pathlib, sys
import grain, jax
from jaxdet.data import pipeline
jax.config.update("jax_num_cpu_devices", 2)
sys.path.insert(0, sys.argv[2])
import test_loop
def batches(start):
    dataset = grain.MapDataset.range(100).map(test_loop.slow_batch)
    for batch in pipeline.iterate(dataset, start, threads=0, workers=2):
        yield batch
        start += 1
        print(start, flush=True)
try:
    limits = test_loop.loop.Limits(grace=30)
    test_loop.train(pathlib.Path(sys.argv[1]), batches=batches, checkpoint_every=100, limits=limits)
except test_loop.loop.Interrupted as stop:
    print(stop, flush=True)
    sys.exit(stop.exit_code)
"""


def test_a_signal_to_a_run_and_its_workers_loses_nothing(tmp_path):
    command = [sys.executable, "-c", WITH_WORKERS, tmp_path, pathlib.Path(__file__).parent]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
    for line in process.stdout:
        if int(line) == 5:
            break
    begun = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (130, "Stopped by SIGINT after step 5.\n"), err
    assert time.perf_counter() - begun < 30
    assert checkpoints.read_metadata(tmp_path / "checkpoints/last")["step"] == 5


WITH_AN_ERROR = WITH_WORKERS.replace(
    "checkpoint_every=100,", "step=test_loop.failing, checkpoint_every=100,"
)


def failing(state, batch):
    if int(state.step) == 2:
        raise RuntimeError("out of memory")
    return toy.parallel_step()(state, batch)


def test_an_error_beside_stuck_workers_ends_the_process(tmp_path):
    """The traceback holds on to the data until Python ends, where no thread starts any more."""
    command = [sys.executable, "-c", WITH_AN_ERROR, tmp_path, pathlib.Path(__file__).parent]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1 and "RuntimeError: out of memory" in ended.stderr


def test_killed_between_an_evaluation_and_its_checkpoint(whole, tmp_path, monkeypatch):
    """What the evaluation wrote is forgotten, and written again."""
    write = logging.MetricsLog.write

    def killed(self, step, values):
        write(self, step, values)
        if step == 8 and "eval/score" in values:
            raise Killed

    monkeypatch.setattr(logging.MetricsLog, "write", killed)
    with pytest.raises(Killed):
        train(tmp_path)
    monkeypatch.undo()
    assert checkpoints.read_metadata(tmp_path / "checkpoints/last")["step"] == 8
    assert toy.to_bytes(train(tmp_path)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])


@pytest.mark.parametrize("lower", [False, True])
def test_the_best_is_the_highest_or_the_lowest(tmp_path, lower):
    train(tmp_path, evaluation=evaluation(every=1, lower_is_better=lower))
    scores = {row["step"]: row["eval/score"] for row in numbers(tmp_path) if "eval/score" in row}
    best = (min if lower else max)(scores, key=scores.get)
    assert len(scores) == STEPS and best == (5 if lower else 8)
    assert checkpoints.read_metadata(tmp_path)["step"] == best


def test_patience_ends_a_run_also_over_several_starts(tmp_path):
    patient = evaluation(every=1, patience=4)  # sin falls from step 2 on, rises after 5.
    with pytest.raises(Killed):
        train(tmp_path, evaluation=patient, step=killed_after(4), checkpoint_every=1)
    assert int(train(tmp_path, evaluation=patient).step) == 6
    assert checkpoints.read_metadata(tmp_path)["step"] == 2
    assert int(train(tmp_path, evaluation=patient).step) == 6  # It stays ended,
    assert int(train(tmp_path, evaluation=evaluation(every=1, patience=6)).step) == STEPS


@pytest.mark.parametrize("limits", [loop.Limits(steps=3), loop.Limits(minutes=1e-9)])
def test_a_budget_ends_a_start_not_the_run(whole, tmp_path, limits):
    n = limits.steps or 1
    state = train(tmp_path, limits=limits)
    assert int(state.step) == n
    assert checkpoints.read_metadata(tmp_path / "checkpoints/last")["step"] == n
    assert [r["step"] for r in numbers(tmp_path) if "eval/score" in r] == [n]
    assert int(train(tmp_path, limits=limits).step) == 2 * n
    assert toy.to_bytes(train(tmp_path)) == whole[1]


def test_finished_run_does_nothing_more(whole, tmp_path):
    train(tmp_path, steps=3)
    before = numbers(tmp_path)

    def never(*_):
        raise Killed

    train(tmp_path, steps=3, step=never, evaluation=evaluation(never))
    assert numbers(tmp_path) == before


PROGRAM = """
import pathlib, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
sys.path.insert(0, sys.argv[2])
import test_loop
def slow(start):
    for batch in test_loop.toy.batches(start):
        print(start, flush=True)
        start += 1
        yield batch
test_loop.train(pathlib.Path(sys.argv[1]), batches=slow, checkpoint_every=1)
"""


def test_kill_9_leaves_a_checkpoint_to_go_on_from(whole, tmp_path):
    command = [sys.executable, "-c", PROGRAM, tmp_path, pathlib.Path(__file__).parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 5:
            break
    process.kill()
    process.wait()
    assert toy.to_bytes(train(tmp_path)) == whole[1]
    assert numbers(tmp_path) == numbers(whole[0])


def nan_at(n, name="loss"):
    def step(state, batch):
        state, metrics = toy.parallel_step()(state, batch)
        return state, metrics | {name: jnp.nan} if int(state.step) == n else metrics

    return step


@pytest.mark.parametrize("name", ["loss", "loss/few", "grad_norm"])
@pytest.mark.parametrize("stop", [4, 5])
def test_divergence_is_never_saved(tmp_path, stop, name):
    wanted = rf"after step {stop}: .*{name} = nan.*last/{2 if stop == 4 else 4}\."
    with pytest.raises(loop.TrainingDiverged, match=wanted):
        train(tmp_path, step=nan_at(stop, name))
    assert [row["step"] for row in numbers(tmp_path) if "loss" in row] == list(range(1, stop))


def test_an_explosion_is_never_saved(tmp_path):
    def step(state, batch):
        state, metrics = toy.parallel_step()(state, batch)
        return state, metrics | {"loss": 1e6 if int(state.step) == 25 else 1.0}

    limits = loop.Limits(explosion=1e3)
    with pytest.raises(loop.TrainingDiverged, match=r"1e\+06 times its median.*last/24\."):
        train(tmp_path, steps=30, step=step, limits=limits, checkpoint_every=8, evaluation=None)


def test_parameters_out_of_range_are_never_saved(tmp_path):
    def step(state, batch):
        state, metrics = toy.parallel_step()(state, batch)
        return state._replace(params=jax.tree.map(lambda x: x * jnp.inf, state.params)), metrics

    with pytest.raises(loop.TrainingDiverged, match=r"after step 2.*there is none"):
        train(tmp_path, step=step)


def test_numbers_are_read_one_step_late():
    """Looking at step i before step i + 1 is dispatched would leave the device idle."""
    events = []

    class Number:
        def __init__(self, step):
            self.step = step

        def __float__(self):
            events.append(f"read {self.step}")
            return 0.0

    def step(state, batch):
        state = state._replace(step=state.step + 1)
        events.append(f"start {int(state.step)}")
        return state, {"loss": Number(int(state.step))}

    loop.run(
        toy.init(), step=step, batches=toy.batches, steps=3, checkpoint_every=9, progress=False
    )
    assert events == ["start 1", "start 2", "read 1", "start 3", "read 2", "read 3"]


def test_one_compilation_for_a_run_and_its_resume(tmp_path):
    @chex.assert_max_traces(n=1)
    def traced(state, batch):
        return toy.step("devices")(state, batch)

    step = parallel.parallel_train_step(traced)
    with pytest.raises(loop.Interrupted):
        train(tmp_path, step=signalled_after(3, step=step))
    train(tmp_path, step=step)


def test_a_log_without_room_says_where_the_run_goes_on(whole, tmp_path, monkeypatch):
    write = logging.MetricsLog.write

    def full(self, step, values):
        if step == 5:
            raise logging.WriteError("metrics.jsonl could not be written")
        write(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(logging.MetricsLog, "write", full)
        last = rf"{tmp_path}/checkpoints/last/4"
        told = rf"metrics\.jsonl could not be written\. Last good checkpoint: {last}\. The same"
        with pytest.raises(logging.WriteError, match=told):
            train(tmp_path)
    directory, want = whole
    assert toy.to_bytes(train(tmp_path)) == want
    assert numbers(tmp_path) == numbers(directory)


def test_misuse(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint_every must be above 0\. Got 0"):
        train(tmp_path, checkpoint_every=0)
    with pytest.raises(ValueError, match=r"minutes must be above 0\. Got -1"):
        train(tmp_path, limits=loop.Limits(minutes=-1))
    with pytest.raises(ValueError, match=r"patience must be above 0\. Got 0"):
        train(tmp_path, evaluation=evaluation(patience=0))
    with pytest.raises(ValueError, match="must not end"):
        train(tmp_path, batches=lambda start: itertools.islice(toy.batches(start), 3))
    with pytest.raises(ValueError, match=r"best_metric must be one of .'ap'.*'score'"):
        train(tmp_path, evaluation=evaluation(lambda state: {"ap": 1.0}))
    train(tmp_path / "a", steps=4)
    with pytest.raises(ValueError, match=r"checkpoint's 4. Got 2"):
        train(tmp_path / "a", steps=2)
