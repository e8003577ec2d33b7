import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxdet.losses import dense


def test_by_hand(compiled):
    # Shared 0.5 + 1, squares 0.25 + 1 + 1 and 2: 1 - 2 * 1.5 / 4.25.
    probabilities = jnp.array([[0.5, 1.0], [0.0, 1.0]])
    targets = jnp.array([[1, 1], [0, 0]])
    got = compiled(dense.dice)(probabilities, targets)
    np.testing.assert_allclose(got, 1 - 3 / 4.25, rtol=1e-6)
    got = compiled(dense.dice)(probabilities, targets.astype(bool))
    np.testing.assert_allclose(got, 1 - 3 / 4.25, rtol=1e-6)


def test_matches_oracle(rng):
    p, t = rng.uniform(size=(2, 3, 4, 5, 6)).astype(np.float32)
    got = jax.jit(dense.dice)(jnp.asarray(p), jnp.asarray(t))
    for index in np.ndindex(3, 4):
        x, y = (v[index].astype(float).ravel() for v in (p, t))
        np.testing.assert_allclose(got[index], 1 - 2 * x @ y / (x @ x + y @ y), rtol=1e-5)


def test_equal_masks_have_no_loss_and_disjoint_ones_all(rng):
    p = jnp.asarray(rng.uniform(size=(7, 5, 5)), jnp.float32)
    np.testing.assert_allclose(dense.dice(p, p), 0, atol=1e-6)
    hard = p > 0.5
    np.testing.assert_array_equal(dense.dice(hard.astype(jnp.float32), hard), 0)
    np.testing.assert_array_equal(dense.dice(hard.astype(jnp.float32), ~hard), 1)


def test_empty_masks():
    none = jnp.zeros((1, 3, 3))
    for p, want in ((0.0, 0), (1e-30, 0), (1e-7, 1), (0.5, 1)):
        value, pull = jax.vjp(jax.jit(lambda x: dense.dice(x, none)), jnp.full((1, 3, 3), p))
        assert value == want
        np.testing.assert_array_equal(pull(jnp.ones(1))[0], 0)
    # An object that is not seen at all pulls.
    grad = jax.grad(lambda x: dense.dice(x, none + 1).sum())(none)
    np.testing.assert_allclose(grad, -2 / 9, rtol=1e-6)


def test_gradients(rng):
    p = jnp.asarray(rng.uniform(size=(2, 3, 3)), jnp.float32)
    t = jnp.asarray(rng.uniform(size=(2, 3, 3)) < 0.5)
    run = jax.jit(lambda x: dense.dice(x, t))
    check_grads(run, (p,), order=1, modes=["rev"], eps=1e-2, atol=0.01, rtol=0.01)


def test_half_precision_is_summed_in_float32():
    p = jnp.full((64, 64), 0.5, jnp.bfloat16)
    got = dense.dice(p, jnp.ones((64, 64), bool))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 0.2, rtol=1e-6)
