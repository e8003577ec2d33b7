"""Numbers are read late, and stop the run where they go wrong."""

import json
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest
import toy_regression as toy

from jaxdet.training import journal, logging, state


def keep(directory, rows, **options):
    """Takes rows of metrics as steps 1, 2, ..."""
    log = logging.MetricsLog(directory)
    kept = journal.Journal(log, None, steps=len(rows), every=1, progress=False, **options)
    with kept.begin(0):
        for number, row in enumerate(rows, start=1):
            kept.add(number, row, toy.batch(number - 1))
        kept.catch_up()
    log.close()


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_explosion_stops_what_is_still_finite(tmp_path, name):
    values = {**{i: 1.0 + 0.1 * (i % 3) for i in range(1, 41)}, 10: 900.0, 30: 250.0}
    rows = [{"loss": 1.0, "grad_norm": 1.0, name: value} for value in values.values()]
    # Step 10 comes before there is a median, 1.1, to hold it against.
    wanted = rf"{name} is 227 times its median.* after step 30: .*{name} = 250"
    with pytest.raises(journal.TrainingDiverged, match=wanted):
        keep(tmp_path, rows, explosion=200.0)
    told = json.loads((tmp_path / journal.DIVERGED).read_text())
    assert told["step"] == 30 and told["checkpoint"] is None
    assert told["records"] == toy.batch(29).records.tolist()
    assert [row["step"] for row in logging.read_rows(tmp_path)] == list(range(1, 30))
    keep(tmp_path, rows, explosion=300.0)
    assert not (tmp_path / journal.DIVERGED).exists()


def test_the_median_is_of_the_last_hundred(tmp_path):
    rows = [{"loss": 1000.0}] * 200 + [{"loss": 1.0}] * 60 + [{"loss": 50.0}]
    with pytest.raises(journal.TrainingDiverged, match="50 times its median"):
        keep(tmp_path, rows, explosion=20.0)


def test_a_number_that_is_none_stops_without_a_limit(tmp_path):
    rows = [{"loss": 1.0, "loss/a": 1.0, "recall": float("nan")}, {"loss": 1.0, "loss/a": 1e39}]
    keep(tmp_path / "a", rows[:1])
    with pytest.raises(journal.TrainingDiverged, match=r"Not finite after step 2: .*loss/a = inf"):
        keep(tmp_path, [rows[0], {"loss": 1.0, "loss/a": float("inf")}])
    told = json.loads((tmp_path / journal.DIVERGED).read_text())
    assert told["values"] == {"loss": "1.0", "loss/a": "inf"}


@pytest.mark.parametrize(
    ("field", "name"),
    [("params", "parameters"), ("batch_stats", "batch statistics"), ("ema", "averages")],
)
def test_what_is_not_finite_is_named(tmp_path, field, name):
    now = state.TrainState(
        step=jnp.int32(7),
        key=jnp.zeros(2, jnp.uint32),
        params={"a": jnp.ones(2)},
        opt_state=(),
        batch_stats={"b": jnp.ones(1)},
        frozen={},
        ema={"c": jnp.ones(3)},
        best=jnp.float32(0),
    )._replace(**{field: {"x": jnp.array([0.0, jnp.inf])}})
    kept = journal.Journal(None, None, steps=9, every=1, progress=False)
    with pytest.raises(journal.TrainingDiverged, match=f"Not finite after step 7: {name} = nan"):
        kept.check_finite(now)


def test_seconds_are_those_of_the_process():
    code = (
        "import time; time.sleep(1); from jaxdet.training import journal;"
        "print(journal.seconds_of_process())"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The clock of the process has hundredths; what is asked comes after a second of sleep.
    assert 1.0 <= float(done.stdout) + 0.05 <= time.perf_counter() - begun + 0.1


@pytest.mark.parametrize(("step", "due"), [(4, True), (5, False), (9, True)])
def test_due(step, due):
    assert journal.is_due(step, 4, 9) is due
