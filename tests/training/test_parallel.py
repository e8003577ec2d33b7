"""Two devices follow one, whichever way they are driven."""

import functools

import jax
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import parallel, steps
from jaxdet.training import state as states


def follow(step, state, n=4):
    metrics = {}
    for number in range(n):
        state, metrics = step(state, toy.batch(number))
    return parallel.unreplicate(state), {k: float(v) for k, v in metrics.items()}


@pytest.fixture(scope="module")
def alone():
    return follow(jax.jit(toy.step(loss_weights={"few": 0.5})), toy.init())


def weighted_step():
    return toy.step(parallel.AXIS, loss_weights={"few": 0.5})


@pytest.mark.parametrize(
    ("make", "n_devices"),
    [
        (toy.parallel_step, 2),
        (lambda: parallel.sharded_train_step(weighted_step()), 2),
        (lambda: parallel.parallel_train_step(weighted_step(), devices=jax.devices()[:1]), 1),
    ],
    ids=["pmap", "shard_map", "pmap on one"],
)
def test_devices_follow_one(alone, make, n_devices):
    start = parallel.replicate(toy.init(), devices=jax.devices()[:n_devices])
    state, metrics = follow(make(), start)
    want_state, want_metrics = alone
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, want_state
    )
    assert metrics == pytest.approx(want_metrics, rel=1e-4)


def test_means_of_ratios_would_differ():
    """Guards the test above: its few images lie on the first device only."""
    first, second = np.split(toy.batch(2).instances.valid.any(axis=1), 2)
    assert first.sum() != second.sum()


def test_validation_follows_one():
    variables, key = states.ema_variables(toy.init()), jax.random.key(2)
    alone = steps.eval_step(
        key, variables, toy.batch(3), loss_fn=functools.partial(toy.loss, toy.Toy())
    )
    step = functools.partial(
        steps.eval_step,
        loss_fn=functools.partial(toy.loss, toy.Toy(parallel.AXIS)),
        axis_name=parallel.AXIS,
    )
    got = parallel.parallel_eval_step(step)(key, parallel.replicate(variables), toy.batch(3))
    assert jax.tree.map(float, got) == jax.tree.map(lambda x: pytest.approx(float(x)), alone)


def test_map_keeps_the_order_of_images():
    def double(variables, images):
        return {"x": images["x"] * variables}

    images = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
    got = parallel.parallel_map(double)(parallel.replicate(np.float32(2)), images)
    np.testing.assert_array_equal(got["x"], images["x"] * 2)


def test_replicate_is_on_all_devices_and_back():
    tree = {"a": np.arange(3.0), "b": {}, "c": np.float32(2)}
    placed = parallel.replicate(tree)
    assert len(placed["a"].devices()) == len(jax.local_devices()) == 2
    back = parallel.unreplicate(placed)
    assert isinstance(back["a"], np.ndarray) and back["b"] == {}
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["c"].shape == () and back["c"] == 2


def test_the_state_is_used_up():
    state = parallel.replicate(toy.init())
    toy.parallel_step()(state, toy.batch(0))
    assert state.params["Dense_0"]["kernel"].is_deleted()


@pytest.mark.parametrize("wrap", [parallel.parallel_train_step, parallel.sharded_train_step])
def test_batches_must_divide(wrap):
    step = wrap(toy.step(parallel.AXIS))
    with pytest.raises(ValueError, match=r"multiple of the 2 devices. Got \[7\]"):
        step(parallel.replicate(toy.init()), toy.batch(0, size=7))


def test_split_by_hand():
    got = parallel.split({"x": np.arange(6)}, n_devices=3)
    np.testing.assert_array_equal(got["x"], [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match=r"Got \[4, 6\]"):
        parallel.split({"x": np.arange(6), "y": np.arange(4)}, n_devices=2)
