import functools

import backbone_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faster_rcnn_cases import drawn

from jaxdet.features import overfeat
from jaxdet.features.conv import flatten
from jaxdet.features.norm import whole
from jaxdet.geometry import receptive_field

DESIGNS = {"fast": overfeat.FAST, "accurate": overfeat.ACCURATE}


def narrow(name, *, padded=True):
    """The network with few channels. Without padding it reads the larger crops it then needs."""
    design = DESIGNS[name]
    layers = tuple(
        layer._replace(features=4 + i, padding=layer.padding if padded else 0)
        for i, layer in enumerate(design.layers)
    )
    size = design.size if padded else seen_side(design)
    return overfeat.Design(layers, hidden=(9, 7), size=size)


def seen_side(design):
    """Side of what a window of a padded network sees, pixels."""
    chain = overfeat._chain(design.layers)
    head = receptive_field.Layer(design.window[0], dilation=design.pool)
    return receptive_field.receptive_field([*chain, head]).size[0]


def run(design, picture):
    """Every window of a picture by `slide`, with what is needed to do the same by hand."""
    model = overfeat.OverFeat(design, num_classes=5)
    x = jnp.zeros((1, design.size, design.size, 3))
    variables = drawn(parity.like(model, x, train=False, method="logits"))
    layers = [variables["params"]["classifier"][n] for n in ("0", "1", "2")]
    maps = jax.jit(lambda x: model.apply(variables, x, whole(x), train=False)[-1])(picture)
    slide = jax.jit(functools.partial(overfeat.slide, design=design), static_argnames="fine")
    logits = jax.jit(functools.partial(model.apply, variables, train=False, method="logits"))
    return maps, slide(maps, layers, fine=True), slide(maps, layers, fine=False), logits, variables


def noise(height, width):
    return jax.random.normal(jax.random.key(3), (1, height, width, 3))


def crop(picture, field, i, j):
    box = receptive_field.seen(field, jnp.array([j, i, j + 1, i + 1.0]))
    x1, y1, x2, y2 = map(int, box)
    assert (x1, y1, x2, y2) == tuple(box.tolist()), "whole pixels"
    return picture[:, y1:y2, x1:x2] if min(x1, y1) >= 0 else None


@pytest.mark.parametrize("name", DESIGNS)
def test_without_padding_every_window_is_its_crop(name):
    design = narrow(name, padded=False)
    stride = overfeat.window_field(design, fine=True).stride[0]
    picture = noise(design.size + 2 * stride + 3, design.size + stride)
    _, fine, _, logits, _ = run(design, picture)
    assert fine.shape == (1, 3, 2, 5)
    field = overfeat.window_field(design, fine=True)
    for i, j in np.ndindex(3, 2):
        want = logits(crop(picture, field, i, j))
        np.testing.assert_allclose(fine[:, i, j], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DESIGNS)
def test_with_padding_every_inner_window_is_a_larger_crop_without_it(name):
    """The same weights: what is padding in a crop is the neighbourhood in a larger picture."""
    design, bare = narrow(name), narrow(name, padded=False)
    picture = noise(bare.size + 40, bare.size + 40)
    _, fine, _, logits, variables = run(design, picture)
    field = overfeat.window_field(design, fine=True)._replace(size=(bare.size, bare.size))
    model = overfeat.OverFeat(bare, num_classes=5)
    compared = 0
    for i, j in np.ndindex(*fine.shape[1:3]):
        cut = crop(picture, field, i, j)
        if cut is not None and cut.shape == (1, bare.size, bare.size, 3):
            want = model.apply(variables, cut, train=False, method="logits")
            np.testing.assert_allclose(fine[:, i, j], want, rtol=1e-4, atol=1e-4)
            compared += 1
    assert compared >= 4
    # A picture of one window is the classifier's own input, padding and all; the same pixels
    # inside of a larger picture are not.
    alone = picture[:, : design.size, : design.size]
    np.testing.assert_allclose(run(design, alone)[1][:, 0, 0], logits(alone), rtol=1e-4, atol=1e-4)
    assert np.abs(fine[:, 0, 0] - logits(alone)).max() > 1e-3


@pytest.mark.parametrize("name", DESIGNS)
def test_every_window_of_the_map_by_the_papers_steps(name):
    """Section 3.3: pool at each offset, slide the classifier over it, interleave the outputs."""
    design = narrow(name)
    side = design.size + 80
    maps, fine, coarse, _, variables = run(design, noise(side, side + 16))
    model = overfeat.OverFeat(design, num_classes=5)
    classify = jax.jit(
        functools.partial(
            model.apply, variables, method=lambda m, x: m.classifier(flatten(x), train=False)
        )
    )
    p, k = design.pool, design.window[0]
    want = np.full(fine.shape, np.nan)  # So that a window left out is noticed.
    for dy, dx in np.ndindex(p, p):
        shifted = overfeat.pooled(maps[:, dy:, dx:], design)
        for i, j in np.ndindex(shifted.shape[1] - k + 1, shifted.shape[2] - k + 1):
            want[:, p * i + dy, p * j + dx] = classify(shifted[:, i : i + k, j : j + k])
    np.testing.assert_allclose(fine, want, rtol=1e-4, atol=1e-4)
    of_fine = fine[:, ::p, ::p][:, : coarse.shape[1], : coarse.shape[2]]
    np.testing.assert_allclose(coarse, of_fine, rtol=1e-5, atol=1e-6)


def test_tables_of_the_paper():
    accurate, fast = overfeat.ACCURATE, overfeat.FAST
    assert (accurate.window, fast.window) == ((5, 5), (6, 6))
    # Table 5: side of the input, of the last map before its pooling, of the classifier's map.
    table = {245: (17, 3), 281: (20, 6), 317: (23, 9), 389: (29, 15), 461: (35, 21), 569: (44, 30)}
    for side, row in table.items():
        found = overfeat.map_side(accurate.layers, side)
        assert (found, overfeat.n_windows(accurate, side, fine=True)) == row
    # 36 pixels a window, 12 with shifts.
    strides = [overfeat.window_field(accurate, fine=fine).stride for fine in (False, True)]
    assert strides == [(36, 36), (12, 12)]
    assert overfeat.n_windows(fast, 230, fine=True) == 0


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("fine", [False, True])
def test_costs_are_those_of_the_traced_program(name, fine):
    design, size = narrow(name), (260, 300)
    convs, head = overfeat.multiply_adds(design, size, num_classes=5, fine=fine)
    model = overfeat.OverFeat(design, num_classes=5)
    x = jax.ShapeDtypeStruct((1, design.size, design.size, 3), jnp.float32)
    variables = parity.like(model, x, train=False, method="logits")

    def whole_picture(variables, x):
        maps = model.apply(variables, x, whole(x), train=False)[-1]
        layers = [variables["params"]["classifier"][n] for n in ("0", "1", "2")]
        return overfeat.slide(maps, layers, design, fine=fine)

    picture = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                total += np.prod(eqn.outvars[0].aval.shape) * np.prod(eqn.invars[1].aval.shape[:3])
            elif "jaxpr" in eqn.params:
                total += count(eqn.params["jaxpr"])
        return total

    assert count(jax.make_jaxpr(whole_picture)(variables, picture)) == convs + head


def test_dropout_needs_keys():
    model = overfeat.OverFeat(narrow("accurate"), num_classes=3)
    x = jnp.zeros((2, 221, 221, 3))
    variables = drawn(parity.like(model, x, train=False, method="logits"))
    with pytest.raises(ValueError, match="keys"):
        model.apply(variables, x, train=True, method="logits")
    keys = jax.random.split(jax.random.key(0))
    rows = model.apply(variables, x, keys=keys, train=True, method="logits")
    assert not np.array_equal(rows[0], rows[1])
