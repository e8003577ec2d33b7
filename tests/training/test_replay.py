"""What a step is made of, looked at once more; test_fit.py has whole runs that diverge."""

import functools
import json

import jax
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import checkpoints, journal, replay, steps


@pytest.fixture
def saved(tmp_path):
    opened = checkpoints.Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


GRADIENTS = jax.jit(
    functools.partial(steps.gradients, loss_fn=functools.partial(toy.loss, toy.Toy()))
)


def again(saved, number, state=None):
    return replay.replay(
        state or toy.init(),
        number,
        step=jax.jit(toy.step()),
        gradients=GRADIENTS,
        batches=toy.batches,
        checkpoints=saved,
        names=toy.NAMES,
    )


def test_a_step_that_is_well(saved):
    lines = again(saved, 3)
    assert lines[0] == "Step 3 again, from the checkpoint of step 0."
    assert lines[2] == "All is finite."
    # The losses are those of a run that goes there on its own.
    state = toy.init()
    for number in range(3):
        state, metrics = jax.jit(toy.step())(state, toy.batch(number))
    assert f"loss/all = {float(metrics['loss/all']):.4g}" in lines[3]
    names = [part.split()[0] for part in lines[4].removeprefix("Largest gradients: ").split(", ")]
    norms = [float(part.split()[1].rstrip(".")) for part in lines[4].split(": ")[1].split(", ")]
    assert len(names) == 5 and norms == sorted(norms, reverse=True)


def test_goes_on_from_the_last_checkpoint(saved):
    state = toy.init()
    bias = np.full(1, np.inf, np.float32)
    params = state.params | {"Dense_1": state.params["Dense_1"] | {"bias": bias}}
    saved.save_last(state._replace(step=np.int32(5), params=params))
    lines = again(saved, 6)
    assert lines[0] == "Step 6 again, from the checkpoint of step 5."
    assert lines[2] == "Not finite in the state before: params/Dense_1/bias (1 of 1)."
    with pytest.raises(ValueError, match=r"above the checkpoint's 5\. Got 5"):
        again(saved, 5)


def test_diverged_step(tmp_path):
    with pytest.raises(ValueError, match="has not diverged"):
        replay.diverged_step(tmp_path)
    (tmp_path / journal.DIVERGED).write_text(json.dumps({"step": 7}))
    assert replay.diverged_step(tmp_path) == 7
