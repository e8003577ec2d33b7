import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features.norm import FrozenBatchNorm
from jaxdet.features.resnet import BasicBlock, Bottleneck, ResNet
from jaxdet.geometry import receptive_field as fields
from jaxdet.geometry.receptive_field import Layer, receptive_field

ALEXNET = [Layer(11, 4, 2), Layer(3, 2), Layer(5, 1, 2), Layer(3, 2), *[Layer(3, 1, 1)] * 3]
VGG_BLOCKS = (2, 2, 3, 3, 3)
VGG = [layer for n in VGG_BLOCKS for layer in [*[Layer(3, 1, 1)] * n, Layer(2, 2)]]


def bottleneck(field, stride):
    inner = [Layer(1), Layer(3, stride, 1), Layer(1)]
    return fields.union(
        [receptive_field(inner, start=field), receptive_field([Layer(1, stride)], start=field)]
    )


def basic(field, stride):
    inner = [Layer(3, stride, 1), Layer(3, 1, 1)]
    return fields.union(
        [receptive_field(inner, start=field), receptive_field([Layer(1, stride)], start=field)]
    )


def resnet_fields(block, stage_sizes):
    """The fields of C2, C3, ... of features/resnet.py."""
    field, maps = receptive_field([Layer(7, 2, 3), Layer(3, 2, 1)]), []
    for stage, n_blocks in enumerate(stage_sizes):
        for i in range(n_blocks):
            field = block(field, 2 if stage > 0 and i == 0 else 1)
        maps.append(field)
    return maps


def boxes_of_gradients(network, shape, cells):
    """Oracle: for each cell, the smallest box around the pixels that its value depends on.

    Poolings pass a gradient to one pixel of a window; eight pictures find all.
    """
    x = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1, (8, *shape, 1)), jnp.float32)
    grad = jax.jit(jax.grad(lambda x, cell: network(x)[:, cell[1], cell[0]].sum()))
    boxes = []
    for cell in cells:
        rows, columns = np.nonzero(np.array(grad(x, jnp.array(cell))).any((0, 3)))
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def seen_by_cells(field, cells):
    cells = jnp.array(cells)
    return fields.seen(field, jnp.concatenate([cells, cells + 1], axis=1))


def ones(model, *inputs, **options):
    """Variables with which nothing cancels, and the shapes of what comes out."""
    init = functools.partial(model.init_with_output, **options)
    out, variables = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables), out


def test_one_layer_by_hand():
    got = receptive_field([Layer(kernel=(3, 5), stride=(2, 1), padding=((1, 0), 2), dilation=2)])
    # Rows -1, 1, 3 are seen: the middle of row 1 is at 1.5. Columns -2, 0, ... 6: 2.5.
    assert got == fields.ReceptiveField(size=(5, 9), stride=(2, 1), center=(1.5, 2.5))


def test_no_layers_are_the_pixels():
    assert receptive_field([]) == fields.PIXELS
    assert receptive_field([Layer(1), Layer((1, 1))]) == fields.PIXELS


@pytest.mark.parametrize(
    ("layers", "size", "stride"),
    [
        # Araujo et al. 2019, table of section "Discussion", and the papers' own counts.
        (ALEXNET, 163, 16),
        ([*ALEXNET, Layer(3, 2)], 195, 32),
        (VGG[:-1], 196, 16),
        (VGG, 212, 32),
    ],
    ids=["alexnet conv5", "alexnet pool5", "vgg16 conv5_3", "vgg16 pool5"],
)
def test_published_sizes(layers, size, stride):
    got = receptive_field(layers)
    assert got.size == (size, size) and got.stride == (stride, stride)


def test_resnet50_by_hand():
    maps = resnet_fields(bottleneck, (3, 4, 6, 3))
    assert [field.size[0] for field in maps] == [35, 91, 267, 427]
    assert [field.stride[1] for field in maps] == [4, 8, 16, 32]
    assert {field.center for field in maps} == {(0.5, 0.5)}
    # With the stride in the first 1x1, as published, it is 483 (Araujo et al. 2019).
    first = [Layer(7, 2, 3), Layer(3, 2, 1), *[Layer(3, 1, 1)] * 3]
    published = [layer for n in (4, 6, 3) for layer in [Layer(1, 2), *[Layer(3, 1, 1)] * n]]
    assert receptive_field([*first, *published]).size == (483, 483)


def test_closed_form(rng):
    # Araujo et al. 2019, eqs. 2 and 5: r = 1 + sum of (k - 1) times the strides before.
    for _ in range(50):
        kernels, strides, dilations, paddings = (rng.integers(1, 5, 6).tolist() for _ in range(4))
        got = receptive_field([*map(Layer, kernels, strides, paddings, dilations)])
        before = np.cumprod([1, *strides])
        reach = np.multiply(np.subtract(kernels, 1), dilations)
        assert got.size == (1 + (reach * before[:-1]).sum(),) * 2
        assert got.stride == (before[-1],) * 2
        assert got.center == (0.5 + ((reach / 2 - paddings) * before[:-1]).sum(),) * 2


def test_a_chain_may_be_cut_anywhere():
    whole = receptive_field(VGG)
    for i in range(len(VGG) + 1):
        assert receptive_field(VGG[i:], start=receptive_field(VGG[:i])) == whole


class Random(nn.Module):
    """Convolutions and poolings as layers say; a pooling where the kernel is even."""

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x):
        for kernel, stride, padding, dilation in self.layers:
            pads = [(p, p) if isinstance(p, int) else p for p in padding]
            if kernel[0] % 2 == 0:
                x = nn.max_pool(x, kernel, stride, pads)
            else:
                x = nn.Conv(3, kernel, stride, pads, kernel_dilation=dilation)(x)
        return x


def random_layer(rng):
    pool = rng.random() < 0.3
    kernel = (2, int(rng.integers(2, 4))) if pool else tuple(rng.choice([1, 3, 5], 2).tolist())
    stride = tuple(rng.integers(1, 3, 2).tolist())
    dilation = (1, 1) if pool else tuple(rng.integers(1, 3, 2).tolist())
    padding = tuple((int(low), int(high)) for low, high in rng.integers(0, 3, (2, 2)))
    return Layer(kernel, stride, padding, dilation)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_random_networks_fill_the_box(seed):
    rng = np.random.default_rng(seed)
    layers = tuple(random_layer(rng) for _ in range(3))
    model, shape = Random(layers), (96, 100)
    variables, out = ones(model, jnp.ones((1, *shape, 1)))
    height, width = out.shape[1:3]
    # Nearer to the borders, layers see each other's padding, which depends on nothing.
    cells = [(width // 2, height // 2), (width // 2 + 1, height // 2 - 1)]
    got = boxes_of_gradients(functools.partial(model.apply, variables), shape, cells)
    np.testing.assert_array_equal(got, seen_by_cells(receptive_field(layers), cells))


@pytest.mark.parametrize(
    ("block", "field_of", "stage_sizes"),
    [(BasicBlock, basic, (1, 2)), (Bottleneck, bottleneck, (1, 1))],
    ids=["basic", "bottleneck"],
)
def test_gradients_of_our_resnet_fill_the_box(block, field_of, stage_sizes):
    model, shape = ResNet(stage_sizes, block, width=2, norm=FrozenBatchNorm), (104, 112)
    sizes = jnp.broadcast_to(jnp.array(shape), (8, 2))
    variables, _ = ones(model, jnp.ones((8, *shape, 1)), sizes, train=False)
    cells = [(7, 6), (0, 0)]
    for stage, field in enumerate(resnet_fields(field_of, stage_sizes)):

        def network(x, stage=stage):
            return model.apply(variables, x, sizes, train=False)[stage]

        got = boxes_of_gradients(network, shape, cells)
        want = np.clip(seen_by_cells(field, cells), 0, [112, 104, 112, 104])
        np.testing.assert_array_equal(got, want)


def test_union_is_the_smallest_box_around():
    wide = fields.ReceptiveField(size=(7, 3), stride=(4, 4), center=(0.5, 0.5))
    high = fields.ReceptiveField(size=(3, 9), stride=(4, 4), center=(2.5, 1.5))
    got = fields.union([wide, high])
    # Rows -3 to 4 and 1 to 4; columns -1 to 2 and -3 to 6.
    assert got == fields.ReceptiveField(size=(7, 9), stride=(4, 4), center=(0.5, 1.5))
    assert fields.union([wide]) == wide


def test_branches_of_unequal_padding_see_the_union():
    layers = [Layer(3, 2, 1), Layer(4, 2, 1)]
    x = jnp.ones((1, 30, 30, 1))
    models = [Random((Layer(*[(v, v) for v in layer]),)) for layer in ((3, 2, 1, 1), (2, 2, 0, 1))]
    variables = [ones(model, x)[0] for model in models]

    def network(x):
        return sum(
            model.apply(v, x).sum(-1, keepdims=True)
            for model, v in zip(models, variables, strict=True)
        )

    field = fields.union([receptive_field([layers[0]]), receptive_field([Layer(2, 2)])])
    got = boxes_of_gradients(network, (30, 30), [(5, 6)])
    np.testing.assert_array_equal(got, seen_by_cells(field, [(5, 6)]))


def test_points_there_and_back(compiled, rng):
    field = receptive_field([Layer((3, 5), (2, 3), ((0, 1), 2)), Layer(3, (2, 1))])
    cells = jnp.asarray(rng.uniform(-9, 99, (4, 5, 2)), jnp.float32)
    pixels = compiled(functools.partial(fields.to_input, field))(cells)
    back = compiled(functools.partial(fields.to_cells, field))(pixels)
    np.testing.assert_allclose(back, cells, atol=1e-4)
    np.testing.assert_allclose(fields.to_input(field, jnp.zeros(2)), field.center[::-1], rtol=1e-6)
    one = fields.to_input(field, jnp.array([2, 1])) - fields.to_input(field, jnp.zeros(2))
    np.testing.assert_allclose(one, [2 * field.stride[1], field.stride[0]])


def test_points_stay_put_through_a_network():
    # A spot of light moves the brightest cell to where `to_cells` says.
    layers = (Layer((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),) * 2
    model, x = Random(layers), np.zeros((1, 64, 64, 1), np.float32)
    x[0, 38:43, 18:23] = 1  # Its middle is at (20.5, 40.5).
    variables, _ = ones(model, x)
    out = model.apply(variables, jnp.asarray(x))[0].sum(-1)
    row, column = np.unravel_index(out.argmax(), out.shape)
    got = fields.to_cells(receptive_field(layers), jnp.array([20.5, 40.5]))
    np.testing.assert_array_equal(got, [column, row])


def test_boxes_of_cells_see_what_their_cells_see():
    field = receptive_field(ALEXNET)
    corners = jnp.array([[3, 5, 4, 6], [7, 9, 8, 10], [3, 5, 8, 10]])
    first, last, both = np.array(fields.seen(field, corners))
    np.testing.assert_array_equal(both, [*first[:2], *last[2:]])


@pytest.mark.parametrize("layers", [ALEXNET, VGG, [Layer(3, 3, 1), Layer(2, 4)]], ids=len)
def test_centered_in_counts_centers(compiled, layers, rng):
    field = receptive_field(layers)
    # Whole and halved corners: on centers, and between.
    low = rng.integers(-40, 800, (300, 2)) / 2
    boxes = np.hstack([low, low + rng.integers(0, 500, (300, 2)) / 2]).astype(np.float32)
    got = np.array(compiled(functools.partial(fields.centered_in, field))(jnp.asarray(boxes)))
    cells = np.arange(-200, 800)
    for axis in (0, 1):
        center = field.center[1 - axis] + cells * field.stride[1 - axis]
        inside = (center >= boxes[:, axis, None]) & (center < boxes[:, axis + 2, None])
        np.testing.assert_array_equal(got[:, axis + 2] - got[:, axis], inside.sum(1))
        some = inside.any(1)
        np.testing.assert_array_equal(got[some, axis], cells[inside[some].argmax(1)])


@pytest.mark.parametrize("error", [-3e-7, 3e-7])
def test_centered_in_needs_no_exact_quotient(error, monkeypatch):
    field = receptive_field(ALEXNET)
    on = field.center[0] + 16 * np.arange(200, dtype=np.float32)
    behind = np.nextafter(on, np.float32(np.inf))
    boxes = jnp.asarray(np.stack([on, on, behind, behind], axis=1))
    exact = fields.to_cells
    monkeypatch.setattr(fields, "to_cells", lambda *inputs: exact(*inputs) * (1 + error))
    want = np.arange(200)[:, None] + np.array([[0, 0, 1, 1]])
    np.testing.assert_array_equal(fields.centered_in(field, boxes), want)


def test_centered_in_is_sppnets_window():
    # Their layers have padding kernel // 2, so that cell i is centered on pixel i * stride.
    field = receptive_field([Layer(7, 2, 3), Layer(3, 2, 1), Layer(5, 2, 2), Layer(3, 2, 1)])
    x = np.arange(1, 200)[np.arange(1, 200) % 16 != 0]
    left, right = np.floor(x / 16) + 1, np.ceil(x / 16) - 1
    corners = jnp.asarray(np.stack([x, x, x, x], axis=1), jnp.float32)
    got = np.array(fields.centered_in(field, corners))
    np.testing.assert_array_equal(got[:, 0], left)
    np.testing.assert_array_equal(got[:, 2] - 1, right)


@pytest.mark.parametrize(
    "wrong",
    [Layer(0), Layer(3, (1, 0)), Layer(3, 1, 0, 0), Layer(3, 1, -1), Layer(3, 1, (0, (0, -1)))],
    ids=str,
)
def test_refuses_layers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"layers must be positive.* Got Layer\(kernel="):
        receptive_field([Layer(3), wrong])


def test_refuses_branches_of_different_strides():
    branches = [receptive_field([Layer(3, 2)]), receptive_field([Layer(3, (2, 1))])]
    with pytest.raises(ValueError, match=r"the same stride\. Got \[\(2, 2\), \(2, 1\)\]"):
        fields.union(branches)
    with pytest.raises(ValueError, match=r"fields must be one or more\. Got \[\]"):
        fields.union([])
