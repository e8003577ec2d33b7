import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.regions import heads


class Mean(nn.Module):
    """A box head that reads the mean of its features."""

    def __call__(self, x, valid, *, train):
        return x.mean((1, 2))


class Echo(nn.Module):
    """A predictor that says what it was given."""

    def __call__(self, x):
        return heads.BoxOutputs(x, jnp.broadcast_to(x[:, :1, None], (len(x), 1, 4)))


def constant_pyramid(canvas, strides, images=1):
    """Maps whose one channel is their stride times (1 + the image's number)."""
    factor = 1.0 + jnp.arange(images, dtype=jnp.float32).reshape(-1, 1, 1, 1)
    return tuple(
        factor * jnp.full((images, canvas[0] // s, canvas[1] // s, 1), float(s)) for s in strides
    )


def test_boxes_are_read_from_the_level_of_their_size():
    canvas = (64, 96)
    module = heads.RoIHeads(Mean(), Echo(), n_levels=3, canonical_size=32.0, canonical_level=4)
    boxes = jnp.array([[[8.0, 8, 8 + s, 8 + s] for s in (4, 15, 17, 31, 33, 50)]] * 2)
    # Sides of 32 are read at stride 16, halves of it at 8. The last map, for proposals, never is.
    pyramid = constant_pyramid(canvas, (4, 8, 16, 32), images=2)
    logits, deltas = jax.jit(lambda p, b: module.apply({}, p, b, canvas))(pyramid, boxes)
    np.testing.assert_allclose(logits[0, :, 0], [4, 4, 8, 8, 16, 16], rtol=1e-6)
    np.testing.assert_allclose(logits[1], 2 * logits[0], rtol=1e-6)  # Each image has its own maps.
    assert logits.shape == (2, 6, 1) and deltas.shape == (2, 6, 1, 4)


def test_features_are_where_the_box_is():
    # The map holds the x of its cells' centers, in pixels: a box's mean is its own center.
    module = heads.RoIHeads(Mean(), Echo(), n_levels=1, aligned=True)
    x = jnp.broadcast_to(jnp.arange(16.0).reshape(1, 1, 16, 1) * 4 + 2, (1, 8, 16, 1))
    boxes = jnp.array([[[8.0, 8, 24, 24], [30, 4, 50, 20]]])
    logits, _ = module.apply({}, (x,), boxes, (32, 64))
    np.testing.assert_allclose(logits[0, :, 0], [16, 40], rtol=1e-5)


@pytest.mark.parametrize("canvas", [(60, 64), (64, 60), (64, 128), (48, 48)])
def test_strides_must_divide_the_canvas(canvas):
    module = heads.RoIHeads(Mean(), Echo(), n_levels=1)
    with pytest.raises(ValueError, match="canvas"):
        module.apply({}, (jnp.zeros((1, 8, 8, 1)),), jnp.zeros((1, 2, 4)), canvas)


@pytest.mark.parametrize("class_agnostic, n_boxes", [(False, 4), (True, 1)])
def test_predictor_shapes(class_agnostic, n_boxes):
    module = heads.BoxPredictor(3, class_agnostic)
    x = jnp.ones((5, 6), jnp.bfloat16)
    out, variables = module.init_with_output(jax.random.key(0), x)
    assert out.logits.shape == (5, 4) and out.deltas.shape == (5, n_boxes, 4)
    assert out.logits.dtype == out.deltas.dtype == jnp.float32
    # Class j's four numbers are rows 4 j to 4 j + 3 of the layer, as in torchvision.
    bias = jnp.arange(4.0 * n_boxes)
    variables["params"]["bbox_pred"] = {"kernel": jnp.zeros((6, 4 * n_boxes)), "bias": bias}
    deltas = module.apply(variables, x).deltas
    np.testing.assert_array_equal(deltas[0], np.arange(4 * n_boxes).reshape(n_boxes, 4))


def test_two_layers_by_hand(rng):
    module = heads.TwoMLPHead(3)
    x = jnp.asarray(rng.normal(size=(4, 2, 2, 5)), jnp.float32)
    valid = jnp.ones(4, bool)
    got, variables = module.init_with_output(jax.random.key(0), x, valid, train=True)
    params = jax.tree.map(np.array, variables["params"])
    hidden = np.maximum(np.array(x).reshape(4, 20) @ params["fc6"]["kernel"], 0)
    np.testing.assert_allclose(
        got, np.maximum(hidden @ params["fc7"]["kernel"], 0), rtol=1e-4, atol=1e-6
    )
    assert got.shape == (4, 3)


def test_statistics_are_those_of_the_valid_boxes(rng):
    module = heads.ConvHead(1, features=2, dense_features=4)
    x = jnp.asarray(rng.normal(size=(6, 3, 3, 2)), jnp.float32)
    valid = jnp.array([True, True, False, True, False, False])
    variables = module.init(jax.random.key(0), x, valid, train=False)

    def run(x, valid):
        return module.apply(variables, x, valid, train=True, mutable=["batch_stats"])

    rows = np.flatnonzero(valid)
    got, moved = run(x, valid)
    want, moved_alone = run(x[rows], jnp.ones(3, bool))
    np.testing.assert_allclose(got[rows], want, rtol=1e-5, atol=1e-5)
    other, moved_other = run(jnp.where(valid.reshape(-1, 1, 1, 1), x, 9.0), valid)
    np.testing.assert_allclose(other[rows], want, rtol=1e-5, atol=1e-5)
    for stats in (moved_alone, moved_other):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, moved, stats)
    # Without training, each box is for itself.
    plain = module.apply(variables, x, valid, train=False)
    np.testing.assert_allclose(
        plain[:2], module.apply(variables, x[:2], valid[:2], train=False), rtol=1e-5, atol=1e-6
    )


def test_no_boxes():
    module = heads.RoIHeads(heads.TwoMLPHead(8), heads.BoxPredictor(2), n_levels=1)
    maps = constant_pyramid((16, 16), (4,))
    out, _ = module.init_with_output(jax.random.key(0), maps, jnp.zeros((1, 0, 4)), (16, 16))
    assert out.logits.shape == (1, 0, 3) and out.deltas.shape == (1, 0, 3, 4)
