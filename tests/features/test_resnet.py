import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features import norm
from jaxdet.features.resnet import BasicBlock, Bottleneck, ResNet, resnet

SIZES = jnp.array([[20, 18], [32, 32]])


def shapes(model, height, width):
    """Shapes of the maps and of the variables, without computing them."""
    x = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    sizes = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    init = functools.partial(model.init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), x, sizes)


@pytest.mark.parametrize("depth, expansion", [(18, 1), (34, 1), (50, 4), (101, 4)])
def test_maps_by_depth(depth, expansion):
    # Odd sizes, at every stage.
    maps, _ = shapes(resnet(depth, width=16, norm=norm.GroupNorm), 67, 97)
    assert [m.shape for m in maps] == [
        (2, 17, 25, 16 * expansion),
        (2, 9, 13, 32 * expansion),
        (2, 5, 7, 64 * expansion),
        (2, 3, 4, 128 * expansion),
    ]


@pytest.mark.parametrize("depth, millions", [(18, 11.69), (34, 21.80), (50, 25.56), (101, 44.55)])
def test_sizes_of_the_paper(depth, millions):
    # As published with torchvision's weights, which hold 1000 classes more.
    maps, variables = shapes(resnet(depth), 32, 32)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    classifier = maps[-1].shape[-1] * 1000 + 1000
    assert (count + classifier) / 1e6 == pytest.approx(millions, abs=0.005)


def test_fewer_stages():
    maps, variables = shapes(resnet(18, n_stages=2, width=8), 32, 32)
    assert [m.shape[-1] for m in maps] == [8, 16]
    assert "layer3" not in variables["params"]


def test_unknown_depth():
    with pytest.raises(ValueError, match=r"depth.*20"):
        resnet(20)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)


def value(variables, images, *, model):
    """A number that all maps, and with batch norm the moved statistics, hang on."""
    maps, updates = model.apply(variables, images, SIZES, train=True, mutable=["batch_stats"])
    return sum(jnp.sum(jnp.sin(m)) for m in maps), updates.get("batch_stats", {})


@pytest.mark.parametrize("n_frozen", [0, 2, 3])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(images, n_frozen):
    model = ResNet((1, 1), BasicBlock, width=4, n_frozen=n_frozen)
    init = functools.partial(model.init, train=False)
    variables = jax.jit(init)(jax.random.key(0), images, SIZES)
    # Branches start at zero; this makes all layers matter.
    params = jax.tree.map(lambda x: jnp.where(x == 0, 0.1, x), variables["params"])
    variables = variables | {"params": params}
    run = jax.jit(jax.grad(functools.partial(value, model=model), has_aux=True))
    gradients, moved = run(variables, images)

    parts = [["conv1", "bn1"], ["layer1"], ["layer2"]]
    for i, names in enumerate(parts):
        for name in names:
            still = [not g.any() for g in jax.tree.leaves(gradients["params"][name])]
            assert all(still) if i < n_frozen else not any(still)
            if name in moved:
                before = jax.tree.leaves(variables["batch_stats"][name])
                same = [
                    np.array_equal(a, b)
                    for a, b in zip(before, jax.tree.leaves(moved[name]), strict=True)
                ]
                assert all(same) if i < n_frozen else not any(same)


@pytest.mark.parametrize("norm_layer", [norm.BatchNorm, norm.FrozenBatchNorm])
def test_branches_start_as_identities_where_they_can_leave_it(images, norm_layer):
    """A frozen norm's scale is never trained: a branch that begins silent would stay so."""
    model = ResNet((2,), Bottleneck, width=4, norm=norm_layer)
    init = functools.partial(model.init, train=False)
    variables = jax.jit(init)(jax.random.key(0), images, SIZES)

    @jax.jit
    def run(variables):
        return model.apply(variables, images, SIZES, train=False)[0]

    # The branches' convolutions change nothing yet where norms are trained; the shortcut's does.
    before, params = run(variables), variables["params"]
    for block in params["layer1"].values():
        block["conv2"] = {"kernel": block["conv2"]["kernel"] + 1}
    silent = norm_layer is norm.BatchNorm
    assert np.array_equal(run(variables), before) == silent
    shortcut = params["layer1"]["0"]["downsample"]["0"]
    shortcut["kernel"] = 2 * shortcut["kernel"]
    assert not np.allclose(run(variables), before)


def test_norms_see_which_cells_hold_the_picture(images):
    class Spy(norm.FrozenBatchNorm):
        @nn.compact
        def __call__(self, x, mask, *, train):
            assert mask.shape == (*x.shape[:3], 1)
            self.sow("seen", "areas", mask.sum((1, 2, 3)))
            return x

    model = ResNet((1, 2), Bottleneck, width=4, norm=Spy)
    init = functools.partial(model.init, train=False)
    seen = jax.jit(init)(jax.random.key(0), images, SIZES)["seen"]
    got = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/areas")[0]: list(areas)
        for path, areas in jax.tree_util.tree_leaves_with_path(seen)
    }
    # 20 x 18 pixels are 10 x 9 cells at stride 2, 5 x 5 at 4, 3 x 3 at 8. The first norm of layer2
    # is before the stride.
    assert got.pop("bn1") == [90, 256]
    assert got.pop("layer2/0/bn1") == [25, 64]
    assert len(got) == 3 + 1 + 2 * 3 + 1 - 1
    for path, areas in got.items():
        assert areas == ([25, 64] if path.startswith("layer1") else [9, 16]), path
