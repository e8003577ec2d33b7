"""Rows, pictures and results on disk."""

import json
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from jaxdet.training import logging


@pytest.fixture
def log(tmp_path):
    opened = logging.MetricsLog(tmp_path)
    yield opened
    opened.close()


def test_a_row_is_on_disk_at_once(log, tmp_path):
    log.write(3, {"loss": np.float32(0.5), "n": 2})
    assert logging.read_rows(tmp_path) == [{"step": 3, "loss": 0.5, "n": 2.0}]


def test_truncate_drops_what_came_later_and_what_was_cut(log, tmp_path):
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log.truncate(2)
    log.write(3, {"loss": 30})
    assert [row["loss"] for row in logging.read_rows(tmp_path)] == [1, 2, 30]


def test_goes_on_with_an_earlier_log(tmp_path):
    for step in (1, 2):
        log = logging.MetricsLog(tmp_path)
        log.write(step, {"loss": step})
        log.close()
    assert [row["step"] for row in logging.read_rows(tmp_path)] == [1, 2]


def test_broken_rows_are_named(log, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"Row 2 .*nonsense"):
        logging.read_rows(tmp_path)


def test_tensorboard_gets_numbers_and_pictures(log, tmp_path):
    log.write(3, {"eval/ap": 0.5})
    log.image(3, "scene", np.zeros((4, 5, 3), np.uint8))
    log.close()
    written = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"eval/ap" in written
    assert b"scene" in written and b"PNG" in written


def events(path):
    """Reads TFRecords: the length of one and its checksum, the record and its checksum."""
    rest = path.read_bytes()
    while rest:
        (length,) = struct.unpack("<Q", rest[:8])
        record = rest[12 : 12 + length]
        sums = rest[8:12] + rest[12 + length : 16 + length]
        assert struct.unpack("<II", sums) == (masked_crc32c(rest[:8]), masked_crc32c(record))
        yield event_pb2.Event.FromString(record)
        rest = rest[16 + length :]


def test_tensorboard_forgets_what_is_computed_again(log, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    log.write(3, {"a": 1.0})
    log.truncate(2)
    log.write(3, {"a": 2.0, "b": 3.0})
    after, before = sorted((tmp_path / "tensorboard").iterdir())
    assert [e.summary.value[0].simple_value for e in events(before) if e.step == 3] == [1.0]
    version, begun, a, b = events(after)
    assert version.file_version == "brain.Event:2" and version.wall_time == 1e9
    assert (begun.step, begun.session_log.status) == (3, event_pb2.SessionLog.START)
    values = [(x.step, x.summary.value[0].tag, x.summary.value[0].simple_value) for x in (a, b)]
    assert values == [(3, "a", 2.0), (3, "b", 3.0)]


FULL_DISK = """
import resource, sys
from jaxdet.training import logging
log = logging.MetricsLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    for step in range(1000):
        log.write(step, {"loss": float(sys.argv[2])})
except logging.WriteError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("value", "name"), [("0.5", "tensorboard"), ("nan", "metrics.jsonl")], ids=str
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, value, name):
    """Not a wait without end; TensorBoard gets no NaN, so only rows grow with it."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, value],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert f"{tmp_path}/{name}" in done.stdout and done.stderr == ""
    assert "could not be written: [Errno 27] File too large" in done.stdout
    assert logging.read_rows(tmp_path)[-1]["step"] > 10


def test_results_say_how_to_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "smoke"])
    path = tmp_path / "new" / "results.json"
    begun = time.perf_counter() - 1.5
    logging.write_results(path, {"ap": np.float32(0.25)}, pictures="a:test", begun=begun, seed=7)
    results = json.loads(path.read_text())
    versions = results.pop("versions")
    assert results == {
        "metrics": {"ap": 0.25},
        "pictures": "a:test",
        "seconds": pytest.approx(1.5, abs=0.5),
        "seed": 7,
        "command": ["train.py", "smoke"],
    }
    assert versions["numpy"] == np.__version__
    assert set(versions) == {"jaxdet", "jax", "jaxlib", "flax", "optax", "numpy", "python"}


def test_an_unfinished_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    logging.write_atomically(path, "old")

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(logging.os, "fsync", full)
    with pytest.raises(logging.WriteError, match=r"results\.json could not be .*No space"):
        logging.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_nan_becomes_null(tmp_path):
    log = logging.MetricsLog(tmp_path)
    log.write(1, {"AP_large": float("nan"), "AP": 0.5})
    log.close()
    assert logging.read_rows(tmp_path) == [{"step": 1, "AP_large": None, "AP": 0.5}]
    logging.write_results(
        tmp_path / "r.json", {"AP": float("nan")}, pictures="a", begun=0.0, seed=0
    )
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"AP": None}


def test_seconds_are_those_of_all_runs(tmp_path):
    for name, ends in (("a", (1.5, 4.0)), ("b", (2.0,))):
        log = logging.MetricsLog(tmp_path / name)
        for step, end in enumerate(ends, start=1):
            log.write(step, {"seconds": end})
        log.write(9, {"eval/AP": 0.5})
        log.close()
    assert logging.seconds(tmp_path / "a") == 4.0
    assert logging.seconds(*(tmp_path / name for name in "abc")) == 6.0
    assert not (tmp_path / "c").exists()
