"""Gradients of single images, against a loop over them."""

import dataclasses
import functools

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.systems import architectures, faster_rcnn
from jaxdet.training import per_example

BATCH = cases.make_batch()
WEIGHTS = {"roi_box": 0.5}
# Group norm sees one image at a time, in a batch too.
NARROW = dataclasses.replace(
    cases.SINGLE_LEVEL, width=16, head_features=16, anchor_sizes=((16.0, 32.0),)
)


@pytest.fixture(scope="module")
def detector():
    """A Faster R-CNN's loss and variables."""
    model = architectures.build(cases.K, NARROW)
    shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH.images)
    return functools.partial(faster_rcnn.loss, model, options=cases.LOSS), cases.drawn(shapes)


@pytest.fixture(scope="module")
def gradients(detector):
    loss, variables = detector
    last_fills = BATCH._replace(records=BATCH.records.at[3].set(-1))
    of = functools.partial(per_example.gradients, loss_fn=loss, train=True, loss_weights=WEIGHTS)
    return jax.jit(of)(variables, last_fills)


def test_each_is_the_gradient_of_its_image_alone(detector, gradients):
    loss, variables = detector

    @jax.jit
    @jax.grad
    def alone(params, one):
        terms, _ = loss(variables | {"params": params}, one, train=True)
        return sum(WEIGHTS.get(name, 1.0) * s / jnp.maximum(n, 1) for name, (s, n) in terms.items())

    for i in range(3):
        want = alone(variables["params"], jax.tree.map(lambda x, i=i: x[i : i + 1], BATCH))
        got = jax.tree.map(lambda x, i=i: x[i], gradients)
        scale = float(optax.tree.norm(want))
        assert scale > 0.1
        close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * scale)
        jax.tree.map(close, got, want)


def test_a_picture_that_fills_the_batch_says_nothing(gradients):
    assert all(not leaf[3].any() for leaf in jax.tree.leaves(gradients))


def hand_made():
    """Lengths 5, 0.5 and 0, over two parameters."""
    return {
        "a": jnp.array([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]),
        "b": {"c": jnp.array([4.0, 0.4, 0.0])},
    }


def test_norms_by_hand(compiled):
    np.testing.assert_allclose(compiled(per_example.norms)(hand_made()), [5, 0.5, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "clip_norm, factors", [(1.0, (0.2, 1, 1)), (0.1, (0.02, 0.2, 1)), (9.0, (1, 1, 1))]
)
def test_clipped_mean_by_hand(compiled, clip_norm, factors):
    mean = compiled(functools.partial(per_example.clipped_mean, clip_norm=clip_norm))(hand_made())
    first, second, _ = factors
    np.testing.assert_allclose(mean["a"], [(3 * first + 0.3 * second) / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(mean["b"]["c"], (4 * first + 0.4 * second) / 3, rtol=1e-6)


def test_one_image_moves_the_mean_by_its_share_at_most():
    """Whatever the image: the sensitivity that private training rests on."""
    wild = jax.tree.map(lambda x: x.at[0].multiply(-1e4), hand_made())
    means = (per_example.clipped_mean(g, clip_norm=0.6) for g in (hand_made(), wild))
    distance = optax.tree.norm(jax.tree.map(jnp.subtract, *means))
    assert float(distance) == pytest.approx(2 * 0.6 / 3, rel=1e-5)


def test_optax_makes_it_private():
    """Without noise, optax's transformation is the clipped mean."""
    tx = optax.contrib.differentially_private_aggregate(0.6, 0.0, jax.random.key(0))
    private, _ = tx.update(hand_made(), tx.init(None))
    want = per_example.clipped_mean(hand_made(), clip_norm=0.6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), private, want)
