import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.losses import classification


def test_softmax_by_hand(compiled):
    logits = jnp.log(jnp.array([[1.0, 2, 5], [1, 1, 2]]))
    got = compiled(classification.softmax_cross_entropy)(logits, jnp.array([2, 0]))
    np.testing.assert_allclose(got, [-np.log(5 / 8), -np.log(1 / 4)], rtol=1e-6)


def test_sigmoid_by_hand(compiled):
    logits = jnp.log(jnp.array([3.0, 3.0, 1.0]))  # Probabilities 3/4, 3/4, 1/2.
    got = compiled(classification.sigmoid_cross_entropy)(logits, jnp.array([1.0, 0.0, 0.3]))
    np.testing.assert_allclose(got, -np.log([3 / 4, 1 / 4, 1 / 2]), rtol=1e-6)


def test_booleans_are_targets():
    got = classification.sigmoid_cross_entropy(jnp.array([2.0, 2]), jnp.array([True, False]))
    want = classification.sigmoid_cross_entropy(jnp.array([2.0, 2]), jnp.array([1, 0]))
    np.testing.assert_array_equal(got, want)
    assert got[0] < got[1]


def test_extreme_logits_stay_finite():
    big = jnp.array([1e30, -1e30])
    losses = (
        lambda x: classification.softmax_cross_entropy(x[None], jnp.array([1])).sum(),
        lambda x: classification.sigmoid_cross_entropy(x, jnp.array([0, 1])).sum(),
    )
    for loss in losses:
        value, grad = jax.jit(jax.value_and_grad(loss))(big)
        np.testing.assert_allclose(value, 2e30, rtol=1e-6)
        np.testing.assert_allclose(grad, [1, -1])


@pytest.mark.parametrize(("label", "meant"), [(-1, 0), (7, 2)])
def test_labels_out_of_range_are_not_nan(label, meant):
    logits = jnp.array([1.0, 2.0, 4.0])
    got = classification.softmax_cross_entropy(logits, jnp.array(label))
    assert got == classification.softmax_cross_entropy(logits, jnp.array(meant))


def test_gradients(rng):
    logits = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    labels, targets = jnp.array([0, 3, 1]), jnp.asarray(rng.uniform(size=(3, 4)), jnp.float32)
    soft = jax.jit(lambda x: classification.softmax_cross_entropy(x, labels))
    sigmoid = jax.jit(lambda x: classification.sigmoid_cross_entropy(x, targets))
    for loss in (soft, sigmoid):
        check_grads(loss, (logits,), order=1, modes=["rev"], eps=1e-2, atol=0.01, rtol=0.01)


def test_half_precision_logits_give_float32_losses():
    logits = jnp.array([[2.0, -2.0]], jnp.bfloat16)
    soft = classification.softmax_cross_entropy(logits, jnp.array([0]))
    sigmoid = classification.sigmoid_cross_entropy(logits, jnp.array([[1, 0]]))
    assert soft.dtype == sigmoid.dtype == jnp.float32
    np.testing.assert_allclose(soft, np.log1p(np.exp(-4.0)), rtol=1e-5)


def test_weighted_sum_by_hand(compiled):
    values, weights = jnp.array([[1.0, 2], [3, 4]]), jnp.array([[0.0, 1], [0.5, 2]])
    total, count = compiled(classification.weighted_sum)(values, weights)
    assert (total, count) == (11.5, 3.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_values_never_get_through(bad):
    values, mask = jnp.array([1.0, bad, 3]), jnp.array([True, False, True])
    total, count = classification.weighted_sum(values, mask)
    assert (total, count) == (4, 2)
    grad = jax.grad(lambda v: classification.weighted_sum(v, mask)[0])(values)
    np.testing.assert_array_equal(grad, [1, 0, 1])


def test_weighted_sum_of_nothing_is_zero():
    total, count = classification.weighted_sum(jnp.full(3, jnp.nan), jnp.zeros(3, bool))
    assert (total, count) == (0, 0)
