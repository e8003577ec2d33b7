"""What is saved comes back, says what it is, and refuses to be something else."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import checkpoints, parallel
from jaxdet.training import state as states


def at(step, *, ema=True, shift=0.0):
    state = toy.init(ema=ema)
    params = jax.tree.map(lambda x: x + shift, state.params)
    return state._replace(step=jnp.asarray(step, jnp.int32), params=params)


@pytest.fixture
def saved(tmp_path):
    opened = checkpoints.Checkpoints(
        tmp_path / "run/checkpoints", metadata={"classes": ["cat", "dog"], "out": tmp_path}
    )
    yield opened
    opened.close()


@pytest.mark.parametrize("ema", [True, False])
def test_restores_every_bit(saved, ema):
    state = at(3, ema=ema, shift=0.1)._replace(best=jnp.asarray(-jnp.inf))
    saved.save_last(parallel.replicate(state))
    got = saved.restore(at(0, ema=ema))
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert toy.to_bytes(got) == toy.to_bytes(state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(got))


def test_keeps_two_of_each_series(saved, tmp_path):
    for step in (2, 4, 6):
        saved.save_last(at(step))
    saved.save_best(at(2))
    assert sorted(p.name for p in (tmp_path / "run/checkpoints/last").iterdir()) == ["4", "6"]
    assert (saved.last_step(), saved.best_step()) == (6, 2)
    for step in (4, 6):
        saved.save_best(at(step))
    saved.discard_best_after(5)
    assert saved.best_step() == 4


def test_a_step_may_be_saved_again(saved):
    saved.save_last(at(2, shift=1.0), notes={"evaluated": False})
    saved.save_last(at(2, shift=2.0), notes={"evaluated": True})
    assert saved.last_metadata()["evaluated"] is True
    assert toy.to_bytes(saved.restore(at(0))) == toy.to_bytes(at(2, shift=2.0))


def test_notes_come_later(saved, tmp_path):
    saved.save_last(at(2), notes={"evaluated": False, "misses": 1})
    saved.note_last({"evaluated": True, "best": -np.inf})
    found = {"evaluated": True, "misses": 1, "best": -np.inf, "step": 2}
    assert found.items() <= saved.last_metadata().items()
    assert toy.to_bytes(saved.restore(at(0))) == toy.to_bytes(at(2))
    again = checkpoints.Checkpoints(tmp_path / "run/checkpoints")
    assert again.last_metadata() == saved.last_metadata()
    saved.save_last(at(4), notes={"evaluated": False})
    assert saved.last_metadata()["evaluated"] is False
    again.close()


FULL_DISK = """
import pathlib, resource, sys
sys.path.insert(0, sys.argv[1])
from test_checkpoints import at, checkpoints, jax, pytest, toy
def large(step):
    return at(step)._replace(frozen={"noise": jax.random.normal(jax.random.key(step), (200, 200))})
saved = checkpoints.Checkpoints(sys.argv[2])
saved.save_last(large(2))
saved.save_last(large(4))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
with pytest.raises(checkpoints.CheckpointError) as error:
    saved.save_last(large(6))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert toy.to_bytes(saved.restore(large(0))) == toy.to_bytes(large(4))
saved.save_last(large(6))  # There is room again.
assert saved.last_step() == 6
print(error.value)
"""


def test_a_full_disk_takes_nothing_away(tmp_path):
    """No file may grow beyond a limit that is less than the arrays need."""
    command = [sys.executable, "-c", FULL_DISK, pathlib.Path(__file__).parent, tmp_path / "c"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert "Step 6 could not be saved" in told and "File too large" in told
    assert f"Last good checkpoint: {tmp_path}/c/last/4." in told


def test_a_folder_that_is_taken_away(saved, tmp_path):
    saved.save_last(at(2))
    series = tmp_path / "run/checkpoints/last"
    series.rename(tmp_path / "elsewhere")
    series.write_text("Something else has its name.")
    told = rf"Step 4 could not be saved.* Last good checkpoint: there is none, {series}/2 is gone\."
    with pytest.raises(checkpoints.CheckpointError, match=told):
        saved.save_last(at(4))
    series.unlink()
    (tmp_path / "elsewhere").rename(series)
    assert saved.last_step() == 2 and int(saved.restore(at(0)).step) == 2
    saved.save_last(at(4))
    assert saved.last_step() == 4


def test_the_last_good_checkpoint_is_one_that_is_there(saved, tmp_path):
    assert saved.last_good() == "there is none"
    for step in (2, 4):
        saved.save_last(at(step))
    assert saved.last_good() == f"{tmp_path}/run/checkpoints/last/4"
    (tmp_path / "run/checkpoints/last/4").rename(tmp_path / "4")
    assert saved.last_good() == f"{tmp_path}/run/checkpoints/last/2"


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("run", 2),
        ("run/checkpoints", 2),
        ("run/checkpoints/best", 2),
        ("run/checkpoints/last", 6),
        ("run/checkpoints/last/4", 4),
    ],
)
def test_finds_the_checkpoint(saved, tmp_path, path, step):
    saved.save_last(at(4, shift=4.0))
    saved.save_last(at(6, shift=6.0))
    saved.save_best(at(2, shift=2.0), notes={"metrics": {"ap": 0.5}})
    # Averaged parameters, though the latest were moved; statistics too.
    variables, metadata = checkpoints.load_variables(tmp_path / path)
    assert toy.to_bytes(variables) == toy.to_bytes(states.ema_variables(at(step)))
    assert metadata == checkpoints.read_metadata(tmp_path / path)
    assert metadata["step"] == step
    assert metadata["classes"] == ["cat", "dog"]
    assert metadata["out"] == str(tmp_path)
    assert metadata.get("metrics") == ({"ap": 0.5} if step == 2 else None)


def test_without_an_average_the_latest_predict(saved, tmp_path):
    state = at(5, ema=False, shift=1.0)._replace(frozen={"mean": jnp.ones(3)})
    saved.save_last(state)
    variables, _ = checkpoints.load_variables(tmp_path / "run")  # None is best: the last.
    assert toy.to_bytes(variables) == toy.to_bytes(states.variables(state))


def test_says_what_does_not_fit(saved):
    saved.save_last(at(1))
    like = at(0)
    like.params["Dense_0"]["kernel"] = jnp.zeros((6, 9))
    like.params["Dense_1"].pop("bias")
    with pytest.raises(ValueError, match="does not fit in 2 arrays") as error:
        saved.restore(like)
    text = str(error.value)
    assert "params/Dense_0/kernel: the checkpoint has float32[6, 4]" in text
    assert "the run needs float32[6, 9]" in text
    assert "params/Dense_1/bias: the checkpoint has float32[1], the run needs nothing" in text


def test_an_unfinished_save_is_not_seen(saved, tmp_path):
    saved.save_last(at(4))
    saved.close()
    left = tmp_path / "run/checkpoints/last/6.orbax-checkpoint-tmp"
    (left / "variables").mkdir(parents=True)
    assert checkpoints.read_metadata(tmp_path / "run")["step"] == 4
    again = checkpoints.Checkpoints(tmp_path / "run/checkpoints")
    assert again.last_step() == 4
    again.save_last(at(6))
    assert again.last_step() == 6
    again.close()


def test_misuse(saved, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to restore"):
        saved.restore(at(0))
    for path, fault in (
        ("run", "holds no checkpoint"),
        ("nowhere", "there is no such folder"),
        ("run/checkpoints/last/7", "there is no such folder"),
    ):
        with pytest.raises(ValueError, match=f"{path}: {fault}"):
            checkpoints.load_variables(tmp_path / path)
    with pytest.raises(ValueError, match=r"keep must be above 1\. Got 1"):
        checkpoints.Checkpoints(tmp_path / "x", keep=1)
