import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.losses import boxes as box_losses


def smooth_l1_one(error, beta):
    """Oracle: eq. 3 for one number."""
    error = abs(error)
    return error * error / (2 * beta) if error < beta else error - beta / 2


def test_by_hand(compiled):
    # beta = 1: 0.5 * 0.25 + 2.5 + 0 + 0.5, in the rows' sums.
    pred = jnp.array([[0.5, -3.0], [2.0, 6.0]])
    target = jnp.array([[0.0, 0.0], [2.0, 5.0]])
    got = compiled(functools.partial(box_losses.smooth_l1, beta=1))(pred, target)
    np.testing.assert_allclose(got, [2.625, 0.5], rtol=1e-6)


@pytest.mark.parametrize("beta", [1 / 9, 1.0, 3.0])
def test_matches_oracle(compiled, rng, beta):
    pred, target = rng.normal(0, 2, (2, 3, 5, 4)).astype(np.float32)
    want = np.vectorize(smooth_l1_one)(pred - target, beta).sum(-1)
    run = functools.partial(box_losses.smooth_l1, beta=beta)
    got = compiled(run)(jnp.asarray(pred), jnp.asarray(target))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_no_beta_is_l1(rng):
    pred, target = map(jnp.asarray, rng.normal(0, 2, (2, 5, 4)).astype(np.float32))
    got = box_losses.smooth_l1(pred, target, beta=0)
    np.testing.assert_allclose(got, np.abs(pred - target).sum(-1), rtol=1e-6)
    near = box_losses.smooth_l1(pred, target, beta=1e-6)
    np.testing.assert_allclose(near, got, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradients(rng, beta):
    # Errors off the kinks at 0 and beta, by more than the finite step.
    error = jnp.asarray(rng.choice([-2, -0.7, -0.3, 0.2, 0.4, 1], (4, 4)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    run = jax.jit(functools.partial(box_losses.smooth_l1, beta=beta))
    check_grads(run, (target + error, target), order=1, modes=["rev"], eps=1e-2, atol=0.01)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradient_at_the_kinks(beta):
    pred = jnp.array([[0.0, beta, -beta, 1e6]])
    grad = jax.grad(lambda p: box_losses.smooth_l1(p, jnp.zeros((1, 4)), beta=beta).sum())(pred)
    np.testing.assert_allclose(grad, [[0, beta > 0, -(beta > 0), 1]])


def test_half_precision_is_summed_in_float32():
    pred = jnp.full((1, 512), 1.0, jnp.bfloat16)
    got = box_losses.smooth_l1(pred, jnp.zeros((1, 512)), beta=0)
    np.testing.assert_array_equal(got, [512])
    assert got.dtype == jnp.float32


def test_rejects():
    with pytest.raises(ValueError, match=r"beta must not be negative\. Got -1"):
        box_losses.smooth_l1(jnp.zeros((1, 4)), jnp.zeros((1, 4)), beta=-1)
    with pytest.raises(jaxtyping.TypeCheckError):
        box_losses.smooth_l1(jnp.zeros((3, 4)), jnp.zeros((1, 4)), beta=1)
