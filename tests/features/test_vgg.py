import backbone_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features.norm import BatchNorm
from jaxdet.features.vgg import VGGFeatures, vgg

MODELS = {
    f"vgg{depth}{suffix}": (depth, norm)
    for depth in (11, 13, 16, 19)
    for suffix, norm in (("", None), ("_bn", BatchNorm))
}


@pytest.mark.parametrize("name", MODELS)
def test_names_are_torchvisions(name):
    depth, norm = MODELS[name]
    parity.assert_names(name, vgg(depth, norm=norm))


@pytest.mark.parametrize(
    "name",
    [n if n == "vgg11_bn" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_numbers_are_torchvisions(name):
    depth, norm = MODELS[name]
    parity.assert_parity(name, vgg(depth, norm=norm))


def test_a_map_before_each_pooling():
    shapes = parity.map_shapes(VGGFeatures(((2, 2), (3,), (4,))), 33, 20)
    assert shapes == [(33, 20, 2), (16, 10, 3), (8, 5, 4)]


@pytest.mark.parametrize("n_frozen", [0, 1, 2])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(n_frozen):
    model = VGGFeatures(((2,), (3,)), norm=BatchNorm, n_frozen=n_frozen)
    pulled, moved = parity.trained_layers(model)
    layers = [{"0", "1"}, {"4", "5"}]
    assert pulled == set().union(*layers[n_frozen:])
    assert moved == pulled & {"1", "5"}


def test_unknown_depth():
    with pytest.raises(ValueError, match=r"depth.*12"):
        vgg(12)


def test_dropout_is_for_training():
    model, x = vgg(11, num_classes=2, dropout=1.0), jnp.ones((1, 32, 32, 3))
    like = parity.like(model, x, train=False, method="logits")
    variables = jax.tree.map(lambda p: jnp.full(p.shape, 1e-2), like)
    dropped = model.apply(
        variables, x, train=True, method="logits", rngs={"dropout": jax.random.key(0)}
    )
    # Nothing but the last layer's bias is left.
    np.testing.assert_allclose(dropped, [[1e-2, 1e-2]], rtol=1e-6)
    assert np.all(model.apply(variables, x, train=False, method="logits") > 1)


def test_half_precision():
    parity.assert_half_precision(vgg(11, norm=BatchNorm, dtype=jnp.bfloat16))
