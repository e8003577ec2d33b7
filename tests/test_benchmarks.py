"""The scripts of benchmarks/, on little; those that need torch are run by hand."""

import re
import runpy

import cv2
import numpy as np
import pytest
from module_files import ROOT, load_module


def load(name):
    return load_module(f"benchmarks/{name}.py", f"benchmark_{name}")


@pytest.mark.parametrize("name", ["overview", "pipeline", "soak", "overfeat_windows"])
def test_help_keeps_points_apart(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for point in ("Run", "Columns"):
        assert re.search(rf"^\W*{point} ", text, flags=re.M), text


def table_of(text, name):
    """The numbers of a row of a printed table, behind its name."""
    (row,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return [float(word) for word in re.findall(r"-?\d+\.?\d*", row.partition(name)[2])]


def test_windows_are_counted_by_hand(capsys):
    script = load("overfeat_windows")
    assert script.main(script.Config(sizes=(221, 461), measured=())) == {}
    printed = capsys.readouterr().out
    # The paper's network: one window, then 21 x 21.
    windows, dense, cut_out, ratio = table_of(printed, "221")
    assert windows == ratio == 1 and dense == cut_out > 1
    windows, dense, cut_out, ratio = table_of(printed, "461")
    assert windows == 441 and ratio == pytest.approx(cut_out / dense, rel=0.01) and ratio > 10


def test_windows_are_measured(capsys):
    script = load("overfeat_windows")
    config = script.Config("small", sizes=(40,), measured=(40,), batch_size=4, repeats=2)
    (seconds,) = script.main(config).values()
    assert len(seconds) == 2 and min(seconds) > 0
    windows, _, _, ratio, *measured = table_of(capsys.readouterr().out, "40")
    # Maps of 18, 16 and 6 cells a side in place of 14, 12 and 4, for three windows a side.
    kernels = (5 * 5 * 3 * 32, 3 * 3 * 32 * 64, 3 * 3 * 64 * 192)
    head = 2 * 2 * 192 * 256 + 256 * 1000
    whole, one = (np.square(sides) @ kernels for sides in ((18, 16, 6), (14, 12, 4)))
    assert windows == 9
    assert ratio == pytest.approx(9 * (one + head) / (whole + 9 * head), abs=0.05)
    assert measured[:2] == pytest.approx(seconds, abs=0.005)


def test_the_overview_measures_the_rows_asked_for(monkeypatch, capsys):
    script = load("overview")
    monkeypatch.setattr(script, "system_cases", lambda rng: {"detect": None})
    script.main(script.Config(only=("iou",), repeats=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    seconds, median, memory = table_of(lines[-1], "iou, 5000 x 100")
    assert seconds > 0 and median > 0 and memory >= 0


def test_the_pipelines_take_turns(tmp_path, rng, capsys):
    for i in range(4):
        pixels = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), pixels)
    script = load("pipeline")
    # Of torchvision, where it is, there is a test of its own to run: the script.
    config = script.Config(tmp_path, (32, 48), batch_size=2, readers=1, rounds=1, batches=2)
    script.main(config)
    printed = capsys.readouterr().out
    assert "4 pictures" in printed
    for name in ("1 threads  ", "1 processes", "1 threads, pictures in memory"):
        median, low, high = table_of(printed, f"jaxdet, {name}")
        assert 0 < low <= median <= high
    with pytest.raises(ValueError, match="must hold JPEG files"):
        script.read_source(tmp_path / "none")


def test_a_soak_looks_ten_times(tmp_path):
    script = load("soak")
    meter = script.train(script.Config(steps=20, batch_size=2), tmp_path)
    assert len(meter.rows) == 10 and (np.array(meter.rows) > 0).all()


@pytest.mark.parametrize(
    ("last", "flat"),
    [
        ((104.0, 5, 1.0, 9.0), True),
        ((106.0, 5, 1.0, 1.0), False),
        ((90.0, 6, 1.0, 1.0), False),
        ((90.0, 5, 1.1, 1.0), False),
    ],
)
def test_a_soak_compares_the_last_tenth_with_the_second(last, flat):
    row = (100.0, 5, 1.0, 1.0)
    meter = load("soak").Meter(100, rows=[(1.0, 1, 0.1, 1.0), *[row] * 8, last])
    assert meter.is_flat() == flat
