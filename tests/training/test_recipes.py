import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from jaxdet.training import fit, loop, processes, recipes


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 1
    """How deep."""


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    """How long it goes on."""
    out: pathlib.Path = pathlib.Path("runs/x")
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)
    rate: float | None = None
    inner: Inner = Inner()

    @property
    def training(self):
        return fit.Options()


@dataclasses.dataclass(frozen=True)
class Trained:
    training: fit.Options = fit.Options()
    out: pathlib.Path = pathlib.Path("runs/x")


def test_processes_with_other_flags_are_refused(monkeypatch):
    second = Trained(fit.Options(learning_rate=0.5, processes=processes.Processes("a:1", 2, 1)))
    second = dataclasses.replace(second, out=pathlib.Path("elsewhere"))
    others = [recipes.as_json(second)]
    monkeypatch.setattr(processes, "gather", lambda own: [own, *others])
    with pytest.raises(recipes.ConfigError) as error:
        recipes._check_same_flags(Trained())
    assert str(error.value).splitlines() == [
        "Process 1 was started with other flags than the first:",
        "  training.learning_rate: 0.02 -> 0.5",
    ]
    others = [recipes.as_json(dataclasses.replace(second, training=fit.Options()))]
    recipes._check_same_flags(Trained())


CONFIGS = {"long": ("Overnight.", Config(steps=1000, rate=0.5)), "smoke": ("Seconds.", Config())}


def parse(*arguments):
    return recipes.from_command_line(
        CONFIGS, default="smoke", description="What it is.", arguments=arguments
    )


@pytest.mark.parametrize(
    "arguments, want",
    [
        ([], Config()),
        (["long"], Config(steps=1000, rate=0.5)),
        (["long", "--steps", "7"], Config(steps=7, rate=0.5)),
        (["--steps", "7", "--out", "a/b"], Config(steps=7, out=pathlib.Path("a/b"))),
        (["long", "--rate", "None", "--inner.depth", "3"], Config(1000, inner=Inner(3))),
        (["--sizes", "3", "4", "5", "6"], Config(sizes=((3, 4), (5, 6)))),
    ],
    ids=str,
)
def test_the_name_comes_first_flags_change_it(arguments, want):
    assert parse(*arguments) == want


def test_arguments_are_those_of_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py", "long", "--steps", "3"])
    got = recipes.from_command_line(CONFIGS, default="smoke", description="")
    assert got == Config(steps=3, rate=0.5)


def test_unknown_names_are_told_which_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("short", "--steps", "3")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "'short'" in message and "long, smoke" in message


@pytest.mark.parametrize("arguments", [["--stps", "3"], ["long", "--steps", "many"]], ids=str)
def test_unknown_flags_and_values_stop(arguments):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2


def test_help_lists_configs_and_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("long", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "What it is.",
        "Overnight.",
        "Seconds.",
        "--steps",
        "How long it goes on.",
        "1000",
    ):
        assert part in text


def test_as_json_is_what_a_file_gives_back():
    got = recipes.as_json(Config())
    assert got == {
        "steps": 10,
        "out": "runs/x",
        "sizes": [[1, 2]],
        "rate": None,
        "inner": {"depth": 1},
    }
    assert json.loads(json.dumps(got)) == got


def test_help_text_keeps_points_apart_and_lines_together():
    text = "Does x.\n\nRun   a\n      b\nWrites  c\n"
    assert recipes.help_text(text) == "Does x.\n\nRun   a\n      b\n\nWrites  c"


def test_a_run_goes_on_under_the_same_config_only():
    begun = {"rate": 0.1, "steps": 5, "inner": {"depth": 1, "width": 2}}
    recipes.check_same_run(begun, begun | {"steps": 9}, free=["steps"], where="runs/x")
    now = begun | {"steps": 9, "inner": {"depth": 3, "width": 2}}
    with pytest.raises(recipes.ConfigError) as error:
        recipes.check_same_run(begun, now, free=["steps"], where="runs/x")
    assert "runs/x" in str(error.value) and "inner.depth: 1 -> 3" in str(error.value)
    assert "width" not in str(error.value) and "steps" not in str(error.value)
    with pytest.raises(recipes.ConfigError, match=r"inner\.width: 2 -> None"):
        recipes.check_same_run(begun, begun | {"inner": {"depth": 1}}, free=[], where="runs/x")


def test_run_script_returns_what_main_does(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--steps", "7"])
    got = recipes.run_script(lambda config: config.steps, Config, description="About.")
    assert got == 7


def test_run_script_shows_faults_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x.py"])

    def main(config):
        raise FileExistsError(f"{config.steps} is there already")

    with pytest.raises(SystemExit) as stop:
        recipes.run_script(main, Config, description="About.", faults=(FileExistsError,))
    assert stop.value.code == 1 and capsys.readouterr().err.endswith("is there already\n")
    with pytest.raises(FileExistsError):
        recipes.run_script(main, Config, description="About.")


HOLDER = """
import pathlib, sys, time
from jaxdet.training import recipes
with recipes._alone(pathlib.Path("runs/x")):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_writes_into_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["x.py", "long"])
    monkeypatch.setattr(recipes, "PATIENCE", 0.2)

    def train():
        return recipes.run_experiment(lambda c: c.rate, CONFIGS, default="smoke", description="")

    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(SystemExit, match="1"):
            train()
        told = capsys.readouterr()
        assert "runs/x: waiting for another process" in told.out
        assert "runs/x: another process writes there." in told.err
        monkeypatch.setattr(recipes, "PATIENCE", 60)
        threading.Timer(0.5, holder.kill).start()  # The system lets go of what it held.
        assert train() == 0.5
    assert train() == 0.5
    assert "waiting" in capsys.readouterr().out


def end_of(monkeypatch, fault):
    """How `run_experiment` ends where its script raises."""
    monkeypatch.setattr("sys.argv", ["x.py", "--steps", "3"])

    def main(config):
        assert config.steps == 3
        raise fault

    with pytest.raises(SystemExit) as stop:
        recipes.run_experiment(main, CONFIGS, default="smoke", description="About.")
    return stop.value.code


def test_run_experiment_says_how_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert end_of(monkeypatch, loop.Interrupted(7, signal.SIGTERM)) == 143
    assert "SIGTERM after step 7" in capsys.readouterr().err
    assert end_of(monkeypatch, loop.TrainingDiverged("Not finite")) == 1
    assert end_of(monkeypatch, ValueError("No such split")) == 1
    assert "No such split" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["x.py", "long"])
    got = recipes.run_experiment(lambda c: c.rate, CONFIGS, default="smoke", description="")
    assert got == 0.5


def test_numbers_that_do_not_fit_stop_before_anything_is_read(monkeypatch, capsys):
    monkeypatch.setattr(Config, "training", fit.Options(steps=10, warmup_steps=10))
    monkeypatch.setattr("sys.argv", ["x.py"])
    with pytest.raises(SystemExit, match="1"):
        recipes.run_experiment(pytest.fail, CONFIGS, default="smoke", description="")
    assert (
        "warmup_steps must be at least 0 and below steps. Got warmup_steps=10, steps=10"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_parts": 0}, r"n_parts must divide batch_size \(of each device\)\. Got 0 and 8"),
        ({"n_parts": 3}, r"n_parts must divide batch_size \(of each device\)\. Got 3 and 8"),
        ({"profile_steps": (1, 4)}, r"profile_steps must be a first step above 1 .* Got \(1, 4\)"),
        ({"profile_steps": (5, 4)}, r"profile_steps must be a first step above 1 .* Got \(5, 4\)"),
    ],
)
def test_numbers_out_of_range_are_named(wrong, message):
    fit.Options(batch_size=8, n_parts=4, profile_steps=(2, 2)).check()
    with pytest.raises(ValueError, match=message):
        fit.Options(batch_size=8, **wrong).check()
