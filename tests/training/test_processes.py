"""Two processes of two devices are one process of four."""

import json
import pathlib
import re
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import checkpoints, logging, processes

HERE = pathlib.Path(__file__).parent


def start(command, out, *, count, **options):
    """Starts each process of a run; returns them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *command(out, count, index, port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        for index in range(count)
    ]


def finish(started):
    """Waits for all; returns what each printed, and its errors and exit code."""
    ends = []
    try:
        for process in started:
            out, errors = process.communicate(timeout=300)
            ends.append((out, errors, process.returncode))
    finally:
        for process in started:
            process.kill()
    return ends


def program(part):
    return lambda out, *numbers: [HERE / "processes_program.py", part, out, *map(str, numbers)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of one process and of two, and what they printed."""
    folders = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes_{count}")
        ends = finish(start(program("all"), folder, count=count))
        assert [code for _, _, code in ends] == [0] * count, ends
        folders[count] = folder, [out for out, _, _ in ends]
    return folders


def parameters(ran, count, index, driver="pmap"):
    with np.load(ran[count][0] / f"{driver}_{count}_{index}.npz") as file:
        return [file[name] for name in file.files]


def told(ran, count, index):
    return json.loads((ran[count][0] / f"told_{count}_{index}.json").read_text())


@pytest.mark.parametrize("driver", ["pmap", "shard_map"])
def test_two_processes_end_as_one_with_their_devices(ran, driver):
    """Through a signal to one of them and a resume of both."""
    first, second, alone = (
        parameters(ran, *process, driver.removesuffix("_map"))
        for process in ((2, 0), (2, 1), (1, 0))
    )
    assert len(first) == len(jax.tree.leaves(toy.init()))
    for a, b, c in zip(first, second, alone, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)


def test_a_signal_to_one_stops_both_at_the_same_step(ran):
    # Sent during step 4, known to all at step 5.
    assert told(ran, 2, 0)["stopped"] == told(ran, 2, 1)["stopped"] == [5, 128 + 15]


def test_the_log_is_that_of_one_process(ran):
    rows, alone = (logging.read_rows(ran[count][0] / "run") for count in (2, 1))
    assert [row["step"] for row in rows] == [row["step"] for row in alone]
    names = ("loss", "loss/few", "error", "grad_norm", "eval/score")
    for row, one in zip(rows, alone, strict=True):
        kept, wanted = ({k: r[k] for k in names if k in r} for r in (row, one))
        assert kept == pytest.approx(wanted, rel=1e-5)


def test_the_first_writes_and_others_leave_nothing(ran):
    folder, printed = ran[2]
    ours = [re.findall("said by .", text) for text in printed]
    assert ours == [["said by 0"], []]
    assert told(ran, 2, 0)["folder"] == str(folder / "run")
    scratch = pathlib.Path(told(ran, 2, 1)["folder"])
    assert scratch != folder / "run" and not scratch.exists()
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {"metrics.jsonl", "tensorboard", "checkpoints", "diverging"}
    assert len(logging.read_rows(folder / "run")) == 9 + 3
    assert sorted(p.name for p in (folder / "run/checkpoints/last").iterdir()) == ["8", "9"]


def test_checkpoints_are_those_of_one_process(ran):
    of_two, of_one = (checkpoints.load_variables(ran[count][0] / "run") for count in (2, 1))
    for a, b in zip(*map(jax.tree.leaves, (of_two[0], of_one[0])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert of_two[1]["step"] == of_one[1]["step"]


def test_every_picture_is_found_once_in_the_order_of_one_process(ran):
    found = told(ran, 1, 0)["found"]
    assert len({row["image_id"] for row in found}) > 4 and len({r["score"] for r in found}) < 5
    assert told(ran, 2, 0)["found"] == told(ran, 2, 1)["found"] == found


def test_poses_are_those_of_one_process(ran):
    first, second, alone = (told(ran, *process)["poses"] for process in ((2, 0), (2, 1), (1, 0)))
    assert first == second
    assert first["rows"] == alone["rows"] and len(alone["rows"]) == 7
    assert first["shares"] == alone["shares"] and 0 < alone["shares"]["PCK"] < 1
    for a, b in zip(first["errors"], alone["errors"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_they_say_to_each_other(ran):
    talks = [told(ran, 2, index)["talk"] for index in (0, 1)]
    long = "x" * 100
    for talk in talks:
        assert talk["gathered"] == [[0, ""], [1, long]]
        assert talk["first"] == [0, "-0.0", long]
        assert talk["known"] == "ValueError: no such file"
        assert talk["votes"] == [0, 0, 15, 0]
        assert talk["records"] == [10, 11, 20, 21]
    assert talks[0]["own"] == "Interrupted: Stopped by SIGTERM after step 3."
    # Cannot be pickled, so told in words.
    assert talks[1]["own"] == f"RuntimeError: The first process stopped: {talks[0]['own']}"
    alone = told(ran, 1, 0)["talk"]
    assert alone["gathered"] == [[0, ""]] and alone["votes"] == [0, 15, 0, 0]


def test_a_step_that_diverged_is_replayed_by_all(ran):
    said = [told(ran, 2, index)["replayed"] for index in (0, 1)]
    begin = "Step 4 again, from the checkpoint of step 2."
    first, second = (lines[lines.index(begin) :] for lines in said)
    assert first == second
    pictures = ", ".join(f"{i}.png (record {i})" for i in range(24, 32))
    assert first[1] == f"Pictures: {pictures}."
    assert first[2] == "Not finite in the losses (sum, count): loss/few/0 (1 of 1)."


def test_an_error_of_one_ends_all(tmp_path):
    """Well before the time after which a silent process is given up."""
    started = start(program("fail"), tmp_path, count=2)
    begun = time.monotonic()
    (_, errors, code), (_, _, other) = finish(started)
    assert code == 1 and "ValueError: The first process fails." in errors
    assert other != 0
    assert time.monotonic() - begun < processes.HEARTBEAT


def test_misuse():
    with pytest.raises(ValueError, match=r"below num_processes\. Got 2 of 2"):
        processes.start(processes.Processes("localhost:1", 2, 2))
    with pytest.raises(ValueError, match=r"need the first process's coordinator.* Got 2 and 1"):
        processes.start(processes.Processes(num_processes=2, process_id=1))


def test_a_process_of_its_own_is_left_alone(tmp_path, capsys):
    with processes.together(processes.Processes(), out=tmp_path) as out:
        print("heard")
        assert out == tmp_path and processes.is_first()
    assert capsys.readouterr().out == "heard\n"
    with (
        pytest.raises(KeyError),
        processes.together(processes.Processes(), out=tmp_path),
    ):
        raise KeyError


SCRIPT = """
import runpy, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv.pop(1)))
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "stages", "measure"),
    [
        ("faster_rcnn", ["."], "AP"),
        ("box_adjustment", ["."], "iou_3"),
        ("deep_pose", ["stage1", "stage2"], "PCK"),
    ],
)
def test_scripts_on_two_processes_are_those_on_one(tmp_path, script, stages, measure):
    """python -m pytest -m slow -k two_processes_are"""
    path = HERE.parents[1] / f"experiments/{script}.py"

    def command(out, count, index, port):
        flags = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
        several = [*flags, "--process-id", str(index)] if count > 1 else []
        common = ["smoke", "--data-dir", tmp_path / "data", "--out", out, *several]
        return ["-c", SCRIPT, str(4 // count), path, *common]

    for count in (1, 2):
        ends = finish(start(command, tmp_path / f"{count}", count=count))
        assert [code for _, _, code in ends] == [0] * count, ends
    for stage in stages:
        two, one = (
            checkpoints.load_variables(tmp_path / n / stage / "checkpoints/last")[0] for n in "21"
        )
        for a, b in zip(*map(jax.tree.leaves, (two, one)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        rows = [logging.read_rows(tmp_path / n / stage) for n in "21"]
        assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    two, one = (json.loads((tmp_path / n / "results.json").read_text())["metrics"] for n in "21")
    assert two.keys() == one.keys() and two[measure] == pytest.approx(one[measure], abs=1e-3)
