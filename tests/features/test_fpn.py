import backbone_cases as cases
import backbone_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdet.features.fpn import FPN, LastLevelP6P7, PyramidBackbone, SingleLevelBackbone
from jaxdet.features.norm import FrozenBatchNorm
from jaxdet.features.resnet import resnet


def identity_variables(fpn, maps, lateral):
    """Lateral layers that multiply by `lateral`, 3x3 ones that copy their center."""
    variables = fpn.init(jax.random.key(0), maps)
    for part, factors in (("inner_blocks", lateral), ("layer_blocks", [1.0] * len(maps))):
        for i, factor in enumerate(factors):
            layer = variables["params"][part][str(i)]["0"]
            center = layer["kernel"].shape[0] // 2
            layer["kernel"] = jnp.zeros_like(layer["kernel"]).at[center, center, 0, 0].set(factor)
    return variables


def test_by_hand_with_odd_sizes():
    fine = jnp.arange(15.0).reshape(1, 3, 5, 1)
    coarse = jnp.array([[100.0, 200.0, 300.0], [400.0, 500.0, 600.0]]).reshape(1, 2, 3, 1)
    fpn = FPN(1)
    variables = identity_variables(fpn, (fine, coarse), lateral=[1.0, 2.0])
    p2, p3, p4 = jax.jit(fpn.apply)(variables, (fine, coarse))
    # Each coarse cell covers 2 x 2 fine ones; the last row and column are cut.
    up = [[200, 200, 400, 400, 600], [200, 200, 400, 400, 600], [800, 800, 1000, 1000, 1200]]
    np.testing.assert_array_equal(p2[0, :, :, 0], np.arange(15).reshape(3, 5) + up)
    np.testing.assert_array_equal(p3[0, :, :, 0], 2 * coarse[0, :, :, 0])
    np.testing.assert_array_equal(p4[0, :, :, 0], [[200, 600]])  # Every second cell of p3.


def test_the_middle_level_passes_on_what_it_got():
    maps = tuple(jnp.full((1, n, n, 1), v) for n, v in ((4, 1.0), (2, 10.0), (1, 100.0)))
    fpn = FPN(1, extra_level=False)
    variables = identity_variables(fpn, maps, lateral=[1.0, 1.0, 1.0])
    got = jax.jit(fpn.apply)(variables, maps)
    assert [float(m[0, 0, 0, 0]) for m in got] == [111, 110, 100]
    assert len(got) == 3


def test_names_are_torchvisions():
    variables = jax.eval_shape(
        FPN(4).init, jax.random.key(0), (jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3)))
    )
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    assert paths == {
        "inner_blocks/0/0/kernel": (1, 1, 2, 4),
        "inner_blocks/1/0/kernel": (1, 1, 3, 4),
        "layer_blocks/0/0/kernel": (3, 3, 4, 4),
        "layer_blocks/1/0/kernel": (3, 3, 4, 4),
    } | {f"{part}_blocks/{i}/0/bias": (4,) for part in ("inner", "layer") for i in (0, 1)}


@pytest.mark.parametrize(
    "key, case, options",
    [
        *((f"fpn_{case}", case, {"extra_level": False}) for case in cases.PYRAMIDS),
        ("fpn_pool", "odd", {}),
        ("fpn_norm", "odd", {"norm": FrozenBatchNorm}),
        ("fpn_c5", "odd", {"extra_level": False, "extra_blocks": LastLevelP6P7(8)}),
        (
            "fpn_p5",
            "odd",
            {"extra_level": False, "extra_blocks": LastLevelP6P7(8, from_pyramid=True)},
        ),
    ],
)
def test_levels_are_torchvisions(key, case, options):
    maps = tuple(jnp.asarray(cases.pictures(2, *shape)) for shape in cases.PYRAMIDS[case])
    model = FPN(8, **options)
    variables = parity.like(model, maps, method="__call__")
    assert parity.names(variables) == set(parity.GOLDEN[f"{key}/names"].tolist())
    levels = jax.jit(model.apply)(parity.weights(key, variables), maps)
    assert len(levels) == sum(name.startswith(f"{key}/P") for name in parity.GOLDEN)
    for i, level in enumerate(levels):
        parity.assert_close(level, parity.GOLDEN[f"{key}/P{i}"])


def test_levels_of_a_backbone_are_torchvisions():
    """RetinaNet's, from C3 on."""
    top = FPN(extra_level=False, extra_blocks=LastLevelP6P7(from_pyramid=True))
    body = resnet(18, norm=FrozenBatchNorm, n_frozen=2)
    backbone = PyramidBackbone(body=body, fpn=top, first_stage=1)
    parity.assert_pyramid("resnet18_fpn", backbone)


def test_norms_take_the_place_of_biases():
    maps = (jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3)))
    variables = parity.like(FPN(4, norm=FrozenBatchNorm), maps, method="__call__")
    layers = [f"{part}_blocks.{i}" for part in ("inner", "layer") for i in (0, 1)]
    norms = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    want = {f"{layer}.{name}" for layer in layers for name in ("0.weight", *norms)}
    assert set(parity.by_name(variables)) == want


class Stages(nn.Module):
    """Three maps of known values, and what the backbone was called with."""

    def __call__(self, x, sizes, *, train):
        return tuple(x[:, :: 2**i, :: 2**i] + (i + train) for i in range(3))


class Same(nn.Module):
    def __call__(self, maps, *, train):
        return tuple(m + 10 * train for m in maps)


@pytest.mark.parametrize("train", [True, False])
def test_which_stages_are_read(train):
    x, sizes = jnp.zeros((1, 4, 4, 1)), jnp.array([[4, 4]])
    for backbone, stages in (
        (PyramidBackbone(Stages(), Same()), [0, 1, 2]),
        (PyramidBackbone(Stages(), Same(), first_stage=1), [1, 2]),
        (SingleLevelBackbone(Stages()), [2]),
    ):
        got = backbone.apply({}, x, sizes, train=train)
        normed = train and isinstance(backbone, PyramidBackbone)
        assert [float(m[0, 0, 0, 0]) for m in got] == [i + train + 10 * normed for i in stages]
