"""Learning rates by hand; optimizers against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.training import schedules


def test_linear_scaling():
    assert schedules.scaled(0.02, 16) == 0.02
    assert schedules.scaled(0.02, 4) == pytest.approx(0.005)
    assert schedules.scaled(0.1, 512, reference=256) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("step", "want"),
    [
        (0, 0.001),
        (50, 0.5005),
        (100, 1),
        (399, 1),
        (400, 0.1),
        (599, 0.1),
        (600, 0.01),
        (999, 0.01),
    ],
)
def test_step_schedule_by_hand(step, want):
    schedule = schedules.step_schedule(
        2.0, steps=1000, warmup_steps=100, warmup_factor=1e-3, milestones=(0.4, 0.6)
    )
    assert float(schedule(step)) == pytest.approx(2 * want, rel=1e-4)


def test_default_milestones_are_the_reference_epochs():
    schedule = schedules.step_schedule(1.0, steps=26 * 500, warmup_steps=0)
    rates = [float(schedule(500 * epoch)) for epoch in range(26)]
    np.testing.assert_allclose(rates, [1] * 16 + [0.1] * 6 + [0.01] * 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "want"), [(0, 0), (5, 0.5), (10, 1), (60, 0.55), (110, 0.1), (500, 0.1)]
)
def test_cosine_schedule_by_hand(step, want):
    schedule = schedules.cosine_schedule(3.0, steps=110, warmup_steps=10, final_fraction=0.1)
    assert float(schedule(step)) == pytest.approx(3 * want, rel=1e-5)


def test_cosine_without_warmup_begins_at_the_peak():
    schedule = schedules.cosine_schedule(3.0, steps=10, warmup_steps=0)
    assert float(schedule(0)) == pytest.approx(3.0)
    assert float(schedule(10)) == pytest.approx(0.0, abs=1e-6)


PARAMS = {"kernel": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.asarray([1.0, -1.0])}


def gradients(i):
    rng = np.random.default_rng(i)
    return {k: rng.normal(size=v.shape).astype(np.float32) for k, v in PARAMS.items()}


def follow(tx, n=5, params=PARAMS):
    state = tx.init(params)
    for i in range(n):
        updates, state = tx.update(gradients(i), state, params)
        params = optax.apply_updates(params, updates)
    return params


def clipped(grads, limit):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {k: g * min(1.0, limit / norm) for k, g in grads.items()}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_sgd_is_torchs(clip_norm):
    tx = schedules.sgd(lambda i: 0.1 / (1 + i), weight_decay=0.2, clip_norm=clip_norm)
    want = {k: np.asarray(v) for k, v in PARAMS.items()}
    buffer = {k: np.zeros_like(v) for k, v in want.items()}
    for i in range(5):
        grads = gradients(i) if clip_norm is None else clipped(gradients(i), clip_norm)
        for k in want:
            decay = 0.2 if k == "kernel" else 0.0
            buffer[k] = 0.9 * buffer[k] + grads[k] + decay * want[k]
            want[k] = want[k] - 0.1 / (1 + i) * buffer[k]
    got = follow(tx)
    for k in want:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5)


def test_adamw_by_loop():
    tx = schedules.adamw(0.1, weight_decay=0.2, clip_norm=0.5, b1=0.8, b2=0.95)
    want = {k: np.asarray(v) for k, v in PARAMS.items()}
    mean = {k: np.zeros_like(v) for k, v in want.items()}
    square = {k: np.zeros_like(v) for k, v in want.items()}
    for i in range(5):
        grads = clipped(gradients(i), 0.5)
        for k in want:
            mean[k] = 0.8 * mean[k] + 0.2 * grads[k]
            square[k] = 0.95 * square[k] + 0.05 * grads[k] ** 2
            mean_hat, square_hat = mean[k] / (1 - 0.8 ** (i + 1)), square[k] / (1 - 0.95 ** (i + 1))
            decay = 0.2 if k == "kernel" else 0.0
            want[k] = want[k] - 0.1 * (mean_hat / (np.sqrt(square_hat) + 1e-8) + decay * want[k])
    got = follow(tx)
    for k in want:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5)


@pytest.mark.parametrize("make", [schedules.sgd, schedules.adamw])
def test_fixed_parameters_neither_move_nor_decay(make):
    params = {"stem": PARAMS, "head": PARAMS}

    def trainable(name):
        return name.startswith("head/")

    tx = make(0.1, weight_decay=0.5, trainable=trainable)
    state = tx.init(params)
    grads = {"stem": gradients(0), "head": gradients(1)}
    updates, _ = tx.update(grads, state, params)
    assert not any(np.any(x) for x in jax.tree.leaves(updates["stem"]))
    assert all(np.all(x != 0) for x in jax.tree.leaves(updates["head"]))
    held = sum(x.size for x in jax.tree.leaves(state))
    assert held < sum(x.size for x in jax.tree.leaves(make(0.1).init(params)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.scaled(0.1, 0), "Got 0, 16"),
        (lambda: schedules.step_schedule(1.0, steps=10, warmup_steps=10), "Got 10, 10"),
        (lambda: schedules.cosine_schedule(1.0, steps=10, warmup_steps=-1), "Got -1, 10"),
        (
            lambda: schedules.step_schedule(1.0, steps=9, warmup_steps=0, milestones=(0.9, 0.5)),
            r"Got \[0.9, 0.5\]",
        ),
        (
            lambda: schedules.step_schedule(1.0, steps=9, warmup_steps=0, milestones=(6.0,)),
            r"Got \[6.0\]",
        ),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
