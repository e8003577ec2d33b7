"""SIGKILL anywhere: the same command, given again, ends in the same bytes.

python -m pytest -n 0 -s -m slow -k killed
KILLS=5 python -m pytest -n 0 -s -m slow -k killed

"""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxdet.training import checkpoints, logging

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "faster_rcnn.py"
KILLS = int(os.environ.get("KILLS", "50"))
STEPS, EVALUATE_EVERY = 150, 8
CLOCK = {
    *("seconds", "seconds_per_step", "images_per_second", "data_wait"),
    "seconds_to_first_step",
}


def start(out, data_dir, compiled):
    command = [sys.executable, SCRIPT, "smoke", "--out", out, "--data-dir", data_dir]
    command += ["--compilation-cache", compiled, "--steps", str(STEPS), "--checkpoint-every", "3"]
    command += ["--evaluate-every", str(EVALUATE_EVERY)]
    environment = dict(os.environ, JAX_ENABLE_COMPILATION_CACHE="true")
    with (out.parent / "errors.txt").open("ab") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def rows(out):
    return logging.read_rows(out) if (out / logging.ROWS).exists() else []


def left_behind(out):
    """All of a run that is no clock's."""
    found = {}
    for series in ("last", "best"):
        manager, step = checkpoints._locate(out / "checkpoints" / series)
        items = checkpoints._read(manager, step, ("variables", "training", "metadata"))
        manager.close()
        metadata = items.pop("metadata")
        arrays = [np.asarray(x).tobytes() for x in jax.tree.leaves(items)]
        metadata["config"] = metadata["config"] | {"out": "", "selection": ""}
        notes = out / "checkpoints" / series / str(step) / checkpoints.NOTES
        found[series] = (arrays, metadata, notes.read_text() if notes.exists() else None)
    found["rows"] = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(out)]
    found["metrics"] = json.loads((out / "results.json").read_text())["metrics"]
    found["detections"] = (out / "detections.json").read_bytes()
    return found


class Moments:
    """Says when a process is at a place worth killing it at."""

    def __init__(self, out, data_dir):
        self._out, self._data_dir = out, data_dir
        self._before = len(rows(out))

    def preparing(self):
        return any(self._data_dir.rglob("incomplete.*"))

    def starting(self):
        return True

    def stepping(self):
        return len(rows(self._out)) > self._before + 4

    def saving(self):
        return any((self._out / "checkpoints").glob("*/*tmp*"))

    def evaluating(self):
        done = rows(self._out)[self._before :]
        return bool(done) and "loss" in done[-1] and done[-1]["step"] % EVALUATE_EVERY == 0

    def reporting(self):
        done = rows(self._out)
        return bool(done) and done[-1]["step"] == STEPS and "eval/AP" in done[-1]


# Seconds after the beginning of each in which it is killed, at most.
DELAYS = {
    "preparing": 0.5,
    "starting": 8.0,
    "stepping": 0.2,
    "saving": 0.1,
    "evaluating": 1.0,
    "reporting": 2.0,
}


@pytest.mark.slow
def test_killed_at_random_moments_ends_in_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    compiled = tmp_path / "compiled"
    whole = tmp_path / "whole"
    assert start(whole, tmp_path / "data", compiled).wait() == 0
    wanted = left_behind(whole)

    killed, seconds, n_runs = collections.Counter(), [], 0
    while killed.total() < KILLS:
        n_runs += 1
        out, data_dir = tmp_path / f"run{n_runs}", tmp_path / f"data{n_runs}"
        middle = rng.permutation(2 * ["starting", "stepping", "saving", "evaluating"]).tolist()
        plan = ["preparing", "preparing", *middle, "reporting", "reporting"]
        for name in plan[: KILLS - killed.total()]:
            process, moment = start(out, data_dir, compiled), Moments(out, data_dir)
            begun = time.perf_counter()
            while process.poll() is None and not getattr(moment, name)():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, DELAYS[name]))
            process.kill()
            if process.wait() == -signal.SIGKILL:
                killed[name] += 1
                seconds.append(time.perf_counter() - begun)
        code = start(out, data_dir, compiled).wait()
        assert code == 0, (tmp_path / "errors.txt").read_text()[-3000:]
        assert left_behind(out) == wanted
    print(f"\n{killed.total()} kills in {n_runs} runs: {dict(killed)}; {sum(seconds):.0f} s")
