import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.losses import classification

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")  # make_losses.py


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
    answers = targets > 0.5
    focal = jax.jit(lambda x: classification.sigmoid_focal_loss(x, answers, gamma=1.5))
    margin = jax.jit(lambda x: classification.hinge(3 * x, answers))
    for loss in (soft, sigmoid, focal, margin):
        check_grads(loss, (logits,), order=1, modes=["rev"], eps=1e-2, atol=0.01, rtol=0.01)


def test_half_precision_logits_give_float32_losses():
    logits = jnp.array([[2.0, -2.0]], jnp.bfloat16)
    soft = classification.softmax_cross_entropy(logits, jnp.array([0]))
    sigmoid = classification.sigmoid_cross_entropy(logits, jnp.array([[1, 0]]))
    focal = classification.sigmoid_focal_loss(logits, jnp.array([[True, False]]))
    margin = classification.hinge(logits, jnp.array([[True, False]]))
    assert soft.dtype == sigmoid.dtype == focal.dtype == margin.dtype == jnp.float32
    np.testing.assert_allclose(soft, np.log1p(np.exp(-4.0)), rtol=1e-5)


def test_focal_by_hand(compiled):
    logits = jnp.log(jnp.array([3.0, 3.0]))  # Probability 3/4.
    got = compiled(classification.sigmoid_focal_loss)(logits, jnp.array([True, False]))
    want = [0.25 / 16 * -np.log(3 / 4), 0.75 * 9 / 16 * -np.log(1 / 4)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("case", range(6))
def test_focal_meets_torchvision(case):
    gamma, alpha = map(float, GOLDEN["focal_options"][case])
    loss = functools.partial(classification.sigmoid_focal_loss, gamma=gamma, alpha=alpha)
    answers = jnp.asarray(GOLDEN["answers"])
    value, pull = jax.vjp(jax.jit(lambda x: loss(x, answers)), jnp.asarray(GOLDEN["logits"]))
    grad = pull(jnp.ones_like(value))[0]
    np.testing.assert_allclose(value, GOLDEN["focal"][case], rtol=1e-5, atol=1e-5)
    want = GOLDEN["focal_grad"][case]
    # Torchvision's is NaN for gamma below 1 where the answer is certain and right.
    there = np.isfinite(want)
    assert there.all() == (gamma != 0.5) and np.isfinite(grad).all()
    np.testing.assert_allclose(grad[there], want[there], rtol=1e-5, atol=1e-5)


def test_focal_without_focus_is_cross_entropy(rng):
    logits, answers = jnp.asarray(rng.normal(0, 4, 50), jnp.float32), rng.uniform(size=50) < 0.5
    entropy = classification.sigmoid_cross_entropy(logits, jnp.asarray(answers))
    got = classification.sigmoid_focal_loss(logits, jnp.asarray(answers), gamma=0, alpha=0.3)
    np.testing.assert_allclose(got, np.where(answers, 0.3, 0.7) * entropy, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0, 0.5, 2, 5])
def test_focal_of_extreme_logits(gamma):
    logits = jnp.array([-1e37, -1e4, 1e4, 1e37])
    loss = functools.partial(classification.sigmoid_focal_loss, gamma=gamma, alpha=0.25)
    for answer, want in ((True, [0.25e37, 0.25e4, 0, 0]), (False, [0, 0, 0.75e4, 0.75e37])):
        value, pull = jax.vjp(lambda x, a=answer: loss(x, jnp.full(4, a)), logits)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        slope = np.sign(want) * (-0.25 if answer else 0.75)
        np.testing.assert_allclose(pull(jnp.ones(4))[0], slope, rtol=1e-5)


def test_hinge_by_hand(compiled):
    scores = jnp.array([[2.0, 0.5, -3], [2, 0.5, -3]])
    targets = jnp.array([[True, True, True], [False, False, False]])
    got = compiled(classification.hinge)(scores, targets)
    np.testing.assert_allclose(got, [[0, 0.5, 4], [3, 1.5, 0]])
    grad = jax.grad(lambda x: classification.hinge(x, targets).sum())(scores)
    np.testing.assert_array_equal(grad, [[0, -1, -1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1}, r"gamma must not be negative\. Got -1"),
        ({"alpha": 2}, r"alpha must be between 0 and 1\. Got 2"),
    ],
)
def test_focal_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        classification.sigmoid_focal_loss(jnp.zeros(1), jnp.ones(1, bool), **options)


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
