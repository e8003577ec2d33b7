"""Optimizers against loops in NumPy, and against themselves at other rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.training import optimizers

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
    tx = optimizers.sgd(lambda i: 0.1 / (1 + i), weight_decay=0.2, clip_norm=clip_norm)
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
    tx = optimizers.adamw(0.1, weight_decay=0.2, clip_norm=0.5, b1=0.8, b2=0.95)
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


def one_by_one(update, n=5):
    """Parameters after `update(gradient, value, name)` at every step, clipped over all of them."""
    want = {k: np.asarray(v) for k, v in PARAMS.items()}
    for i in range(n):
        for k, gradient in clipped(gradients(i), 0.5).items():
            want[k] = want[k] + update(gradient, want[k], k)
    return want


def test_lars_by_loop():
    tx = optimizers.lars(0.1, weight_decay=0.2, clip_norm=0.5, momentum=0.8, trust=0.05)
    buffer = dict.fromkeys(PARAMS, 0.0)

    def update(gradient, value, name):
        if name == "kernel":
            gradient = gradient + 0.2 * value
            gradient = gradient * 0.05 * np.linalg.norm(value) / np.linalg.norm(gradient)
        buffer[name] = 0.8 * buffer[name] - 0.1 * gradient
        return buffer[name]

    want, got = one_by_one(update), follow(tx)
    for k in want:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5)


def test_lamb_by_loop():
    tx = optimizers.lamb(0.1, weight_decay=0.2, clip_norm=0.5, b1=0.8, b2=0.95)
    moments = {k: (0.0, 0.0, 0) for k in PARAMS}

    def update(gradient, value, name):
        mean, square, n = moments[name]
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        moments[name] = (mean, square, n + 1)
        step = mean / (1 - 0.8 ** (n + 1)) / (np.sqrt(square / (1 - 0.95 ** (n + 1))) + 1e-6)
        if name == "kernel":
            step = step + 0.2 * value
        return -0.1 * step * np.linalg.norm(value) / np.linalg.norm(step)

    want, got = one_by_one(update), follow(tx)
    for k in want:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5)


MAKERS = [optimizers.sgd, optimizers.adamw, optimizers.lars, optimizers.lamb]


@pytest.mark.parametrize("make", MAKERS)
def test_a_share_of_the_rate_is_that_rate(make):
    """Each part of the tree follows an optimizer of its own with its own learning rate."""
    params = {"body": {"first": PARAMS, "second": PARAMS}, "head": PARAMS}
    rules = [("^body/", 0.5), ("first", 0.1)]
    tx = make(lambda i: 0.1 / (1 + i), weight_decay=0.5, rate=optimizers.rate_by_patterns(rules))
    state = tx.init(params)
    for i in range(4):
        grads = {"body": {"first": gradients(i), "second": gradients(i)}, "head": gradients(i)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    found = (params["body"]["first"], params["body"]["second"], params["head"])
    for part, share in zip(found, (0.05, 0.5, 1.0), strict=True):
        alone = make(lambda i, share=share: share * 0.1 / (1 + i), weight_decay=0.5)
        want = follow(alone, n=4)
        for k in want:
            np.testing.assert_allclose(part[k], want[k], rtol=1e-5)


def test_rules_by_hand():
    rules = optimizers.layer_decay(["^stem/", "^layer1/", "^layer2/"], 0.5)
    rate = optimizers.rate_by_patterns([*rules, ("bias$", 2.0), ("^layer2/0", 0.0)])
    paths = ("stem/kernel", "stem/bias", "layer1/0/kernel", "layer2/0/bias", "layer2/1/bias")
    assert [rate(path) for path in paths] == [0.125, 0.25, 0.25, 0.0, 1.0]
    assert rate("head/kernel") == 1.0 and rate("head/stem/bias") == 2.0


def test_misuse():
    params = {"stem": PARAMS, "head": PARAMS}
    optimizers.check_patterns(["^stem/", "bias"], params)
    with pytest.raises(ValueError, match=r"no parameter has 'steam' .* are: .*stem/bias"):
        optimizers.check_patterns(["^stem/", "steam"], params)
    with pytest.raises(ValueError, match=r"must be >= 0\. Got -1.0 for 'a'"):
        optimizers.rate_by_patterns([("a", -1.0)])
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        optimizers.rate_by_patterns([("(", 1.0)])


@pytest.mark.parametrize("make", MAKERS)
def test_fixed_parameters_neither_move_nor_decay(make):
    params = {"stem": PARAMS, "head": PARAMS}

    def trainable(name):
        return name.startswith("head/")

    tx = make(0.1, weight_decay=0.5, rate=trainable)
    state = tx.init(params)
    grads = {"stem": gradients(0), "head": gradients(1)}
    updates, _ = tx.update(grads, state, params)
    assert not any(np.any(x) for x in jax.tree.leaves(updates["stem"]))
    assert all(np.all(x != 0) for x in jax.tree.leaves(updates["head"]))
    held = sum(x.size for x in jax.tree.leaves(state))
    assert held < sum(x.size for x in jax.tree.leaves(make(0.1).init(params)))
