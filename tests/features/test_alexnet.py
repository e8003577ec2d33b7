import backbone_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features.alexnet import AlexNetFeatures, alexnet


def test_names_are_torchvisions():
    parity.assert_names("alexnet", alexnet())


def test_numbers_are_torchvisions():
    parity.assert_parity("alexnet", alexnet())


def test_maps_at_three_strides():
    shapes = parity.map_shapes(AlexNetFeatures(), 227, 67)
    assert shapes == [(56, 16, 64), (27, 7, 192), (13, 3, 256)]


@pytest.mark.parametrize("n_frozen", [1, 3])
def test_frozen_layers_get_no_gradient(n_frozen):
    pulled, _ = parity.trained_layers(AlexNetFeatures(n_frozen))
    assert pulled == {1: {"3", "6", "8", "10"}, 3: set()}[n_frozen]


def test_dropout_is_for_training_and_needs_a_key():
    model, x = alexnet(num_classes=3), jnp.ones((1, 64, 64, 3))
    like = parity.like(model, x, train=False, method="logits")
    variables = jax.tree.map(lambda p: jnp.full(p.shape, 1e-2), like)
    with pytest.raises(Exception, match="dropout"):
        model.apply(variables, x, train=True, method="logits")

    @jax.jit
    def run(key):
        return model.apply(variables, x, train=True, method="logits", rngs={"dropout": key})

    keys = jax.random.split(jax.random.key(0))
    assert not np.array_equal(run(keys[0]), run(keys[1]))
    np.testing.assert_array_equal(run(keys[0]), run(keys[0]))


def test_half_precision():
    parity.assert_half_precision(alexnet(dtype=jnp.bfloat16))
