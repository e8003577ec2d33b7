"""Each member of an ensemble is trained as it would be alone."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import toy_regression as toy

from jaxdet.training import ensemble, parallel, state, steps

KEYS = jax.random.split(jax.random.key(5), 3)
RATES = np.array([0.1, 0.03, 0.01], np.float32)


def init(key):
    return toy.Toy().init(key, jnp.zeros((8, 6)), train=True)


def momentum(learning_rate):
    return optax.sgd(learning_rate, momentum=0.9)


def step_of(tx, axis_name=None):
    loss = functools.partial(toy.loss, toy.Toy(axis_name))
    return functools.partial(
        steps.train_step, loss_fn=loss, tx=tx, ema_decay=0.9, axis_name=axis_name
    )


def follow(step, states, n=4):
    metrics = {}
    for number in range(n):
        states, metrics = step(states, toy.batch(number))
    return states, metrics


def assert_close(got, want):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


def alone(index, rate):
    tx = momentum(float(rate))
    start = state.init_state(KEYS[index], init(KEYS[index]), tx, ema=True)
    return follow(jax.jit(step_of(tx)), start)


@pytest.fixture(scope="module")
def grown():
    """Three members of other seeds and learning rates, after four steps."""
    tx = optax.inject_hyperparams(momentum)(0.5)
    states = ensemble.init_states(KEYS, init, tx, hyperparams={"learning_rate": RATES}, ema=True)
    return follow(jax.jit(ensemble.together(step_of(tx))), states)


@pytest.mark.parametrize("index", range(3))
def test_a_member_is_its_own_run(grown, index):
    states, metrics = grown
    one, numbers = ensemble.member((states, metrics), index)
    want, want_numbers = alone(index, RATES[index])
    assert_close(one._replace(opt_state=one.opt_state.inner_state), want)
    assert_close(numbers, want_numbers)
    # Members differ, or the comparison would say nothing.
    other = ensemble.member(states, (index + 1) % 3)
    assert np.abs(one.params["Dense_0"]["kernel"] - other.params["Dense_0"]["kernel"]).max() > 0.01


def test_members_go_on_alone(grown):
    """What is taken out is a state like any other."""
    one = ensemble.member(grown[0], 1)
    tx = optax.inject_hyperparams(momentum)(0.5)
    later, _ = jax.jit(step_of(tx))(one, toy.batch(4))
    assert int(later.step) == 5
    assert later.opt_state.hyperparams["learning_rate"] == RATES[1]


def test_equal_keys_differ_by_their_numbers_alone():
    keys = KEYS[jnp.zeros(3, int)]
    tx = optax.inject_hyperparams(momentum)(0.5)
    states = ensemble.init_states(keys, init, tx, hyperparams={"learning_rate": RATES})
    for leaf in jax.tree.leaves(states.params):
        np.testing.assert_array_equal(leaf[0], leaf[2])
    states, metrics = jax.jit(ensemble.together(step_of_plain(tx)))(states, toy.batch(0))
    assert np.ptp(metrics["loss"]) == pytest.approx(0, abs=1e-6)
    moved = states.params["Dense_1"]["bias"][:, 0]  # From zero.
    np.testing.assert_allclose(moved / moved[0], RATES / RATES[0], rtol=1e-4)


def step_of_plain(tx):
    return functools.partial(
        steps.train_step, loss_fn=functools.partial(toy.loss, toy.Toy()), tx=tx
    )


def test_schedules_are_scaled():
    """The example of docs/reliability.md: a rate of each member's own over a common schedule."""
    schedule = optax.linear_schedule(0.1, 0.0, 4)

    def scaled(scale):
        return optax.chain(optax.sgd(schedule), optax.scale(scale))

    tx = optax.inject_hyperparams(scaled)(1.0)
    scales = np.array([1.0, 0.5, 0.0], np.float32)
    states = ensemble.init_states(KEYS, init, tx, hyperparams={"scale": scales})
    states, _ = follow(jax.jit(ensemble.together(step_of_plain(tx))), states)
    tx = optax.sgd(lambda count: 0.5 * schedule(count))
    start = state.init_state(KEYS[1], init(KEYS[1]), tx)
    want, _ = follow(jax.jit(step_of_plain(tx)), start)
    assert_close(ensemble.member(states.params, 1), want.params)
    assert_close(ensemble.member(states.params, 2), init(KEYS[2])["params"])


def test_on_several_devices(grown):
    tx = optax.inject_hyperparams(momentum)(0.5)
    states = ensemble.init_states(KEYS, init, tx, hyperparams={"learning_rate": RATES}, ema=True)
    step = parallel.parallel_train_step(ensemble.together(step_of(tx, parallel.AXIS)))
    got, metrics = follow(step, parallel.replicate(states))
    assert_close(parallel.unreplicate(got), grown[0])
    assert metrics["loss"].shape == (3,)


def test_misuse():
    def number(key):
        return {"params": {"w": jax.random.normal(key)}}

    tx = optax.inject_hyperparams(momentum)(0.5)
    with pytest.raises(ValueError, match=r"some of \['learning_rate'\]. Got \['rate'\]"):
        ensemble.init_states(KEYS, number, tx, hyperparams={"rate": RATES})
    with pytest.raises(jaxtyping.TypeCheckError):
        ensemble.init_states(KEYS, number, tx, hyperparams={"learning_rate": RATES[:2]})
    for fixed in (momentum(0.5), optax.inject_hyperparams(momentum)(optax.constant_schedule(0.5))):
        with pytest.raises(ValueError, match=r"some of \[\]"):
            ensemble.init_states(KEYS, number, fixed, hyperparams={"learning_rate": RATES})
