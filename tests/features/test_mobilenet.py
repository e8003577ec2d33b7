import functools

import backbone_parity as parity
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features import mobilenet, norm
from jaxdet.features.fpn import FPN, PyramidBackbone
from jaxdet.features.mobilenet import MobileNetV3Features, Setting, SqueezeExcitation

MODELS = {
    "mobilenet_v3_large": mobilenet.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet.mobilenet_v3_small,
}
# Stages begin with the layers 0, 1, 3 and 4.
SETTINGS = (
    Setting(3, 8, 8, True, nn.relu, 2),
    Setting(3, 16, 8, False, nn.relu, 1),
    Setting(5, 24, 16, True, nn.hard_swish, 2),
)


@pytest.mark.parametrize("name", MODELS)
def test_names_are_torchvisions(name):
    parity.assert_names(name, MODELS[name]())


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_torchvisions(name):
    parity.assert_parity(name, MODELS[name]())


def detector_backbone():
    """Torchvision's `mobilenet_backbone` as its Faster R-CNN has it."""
    body = mobilenet.mobilenet_v3_large(norm=norm.FrozenBatchNorm, n_frozen=4).features
    return PyramidBackbone(body=body, fpn=FPN(), first_stage=4)


def test_names_in_a_detector_are_torchvisions():
    x, sizes = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32)
    variables = parity.like(detector_backbone(), x, sizes, train=False, method="__call__")
    assert parity.names(variables) == set(parity.GOLDEN["mobilenet_fpn/names"].tolist())


@pytest.mark.slow
def test_numbers_in_a_detector_are_torchvisions():
    parity.assert_pyramid("mobilenet_fpn", detector_backbone())


@pytest.mark.parametrize("model", MODELS.values())
def test_strides_and_channels(model):
    # Odd sizes, at every stage.
    shapes = parity.map_shapes(model().features, 97, 67)
    assert [s[:2] for s in shapes] == [(49, 34), (25, 17), (13, 9), (7, 5), (4, 3), (4, 3)]
    large = [16, 24, 40, 80, 160, 960]
    small = [16, 16, 24, 40, 96, 576]
    assert [s[2] for s in shapes] == (large if model is MODELS["mobilenet_v3_large"] else small)


def test_layers_after_the_last_stage_are_left_out():
    x, sizes = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32)
    model = mobilenet.mobilenet_v3_large(n_stages=5).features
    params = parity.like(model, x, sizes, train=False, method="__call__")["params"]
    assert sorted(params, key=int) == [str(i) for i in range(14)]
    assert len(parity.map_shapes(model, 64, 64)) == 5


@pytest.mark.parametrize("n_frozen, first", [(0, 0), (2, 3), (4, 5)])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(n_frozen, first):
    pulled, moved = parity.trained_layers(
        MobileNetV3Features(8, SETTINGS, n_stages=4, n_frozen=n_frozen)
    )
    assert pulled == moved == {str(i) for i in range(first, 5)}


def test_squeeze_excitation_by_hand():
    x = jnp.array([[1.0, 10.0], [3.0, 30.0]]).reshape(1, 2, 1, 2)  # The means are 2 and 20.
    params = {
        "fc1": {"kernel": jnp.array([[1.0], [-0.05]]).reshape(1, 1, 2, 1), "bias": jnp.ones(1)},
        "fc2": {"kernel": jnp.array([[0.75, -9.0]]).reshape(1, 1, 1, 2), "bias": jnp.zeros(2)},
    }
    got = SqueezeExcitation(1).apply({"params": params}, x)
    # The hidden channel is 2 - 1 + 1 = 2, so the weights are 1.5 / 6 + 0.5 and 0.
    np.testing.assert_allclose(got.reshape(2, 2), [[0.75, 0], [2.25, 0]], rtol=1e-6)


def test_norms_see_which_cells_hold_the_picture():
    class Spy(norm.FrozenBatchNorm):
        @nn.compact
        def __call__(self, x, mask, *, train):
            assert mask.shape == (*x.shape[:3], 1)
            self.sow("seen", "areas", mask.sum())
            return x

    model = MobileNetV3Features(8, SETTINGS, norm=Spy, n_stages=4)
    init = functools.partial(model.init, train=False)
    seen = jax.jit(init)(jax.random.key(0), jnp.ones((1, 32, 32, 3)), jnp.array([[20, 18]]))["seen"]
    areas = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/1/areas")[0]: int(area)
        for path, area in jax.tree_util.tree_leaves_with_path(seen)
    }
    # 10 x 9 cells at stride 2, 5 x 5 at 4, 3 x 3 at 8; a block's first norm is before its stride.
    assert areas == {"0": 90} | {"1/block/0": 25, "1/block/2": 25} | {
        "2/block/0": 25,
        "2/block/1": 25,
        "2/block/2": 25,
    } | {"3/block/0": 25, "3/block/1": 9, "3/block/3": 9, "4": 9}


def test_half_precision():
    parity.assert_half_precision(mobilenet.mobilenet_v3_small(dtype=jnp.bfloat16))
