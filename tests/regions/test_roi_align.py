import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import roi_cases
from jax.test_util import check_grads

from jaxdet.regions import places
from jaxdet.regions.roi_align import CHUNK, pyramid_roi_align, roi_align, taps

SCALES = (1 / 2, 1 / 4, 1 / 8)


def random_inputs(rng, n, height=6, width=8, n_channels=2):
    low, side = rng.uniform(-1, 5, (n, 2)), rng.uniform(0.5, 4, (n, 2))
    boxes = jnp.asarray(np.hstack([low, low + side]), jnp.float32)
    return jnp.asarray(rng.normal(size=(height, width, n_channels)), jnp.float32), boxes


def random_pyramid(rng, n):
    pyramid = tuple(
        jnp.asarray(rng.normal(size=(*size, 3)), jnp.float32) for size in [(12, 16), (6, 8), (3, 4)]
    )
    _, boxes = random_inputs(rng, n)
    return pyramid, boxes * 4, jnp.asarray(rng.integers(0, 3, n), jnp.int32)


def test_ramp_by_hand(compiled):
    # Values are their own coordinates, so a bin holds the mean position of its samples.
    y, x = np.mgrid[:10, :12].astype(np.float32)
    boxes = jnp.array([[2.0, 1.0, 8.0, 5.0]])
    align = functools.partial(roi_align, output_size=(2, 3))
    got = compiled(align)(jnp.stack([y, x], axis=-1), boxes)
    want = np.stack(np.meshgrid([2, 4], [3, 5, 7], indexing="ij"), axis=-1)[None]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_options_by_hand():
    features = jnp.arange(8, dtype=jnp.float32)[None, :, None] * jnp.ones((8, 1, 1))
    align = functools.partial(roi_align, features, output_size=1)
    box = jnp.array([[4.0, 4.0, 8.0, 8.0]])
    np.testing.assert_allclose(align(box).ravel(), 6)
    np.testing.assert_allclose(align(box, aligned=True).ravel(), 5.5)
    np.testing.assert_allclose(align(box, spatial_scale=0.5).ravel(), 3)
    tiny = jnp.array([[4.0, 4.0, 4.2, 4.2]])  # Grows to one cell unless aligned.
    np.testing.assert_allclose(align(tiny).ravel(), 4.5)
    np.testing.assert_allclose(align(tiny, aligned=True).ravel(), 3.6, rtol=1e-6)


@pytest.mark.parametrize("aligned", [False, True])
def test_matches_oracle(rng, aligned):
    features, boxes = random_inputs(rng, 7)
    align = functools.partial(roi_align, output_size=(2, 3), sampling_ratio=3, aligned=aligned)
    oracle = functools.partial(roi_cases.align_one, size=(2, 3), counts=(3, 3), aligned=aligned)
    want = [oracle(np.array(features), box) for box in np.array(boxes)]
    np.testing.assert_allclose(jax.jit(align)(features, boxes), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cases", roi_cases.groups("align"))
def test_matches_torchvision(cases):
    roi_cases.compare(roi_align, cases, atol=3e-6)


def test_samples_at_the_border_of_the_map_are_those_of_float32(rng):
    # Boxes in whole cells put many samples at -1 or 7, of which the last bit decides.
    low = rng.integers(-40, 8, (20_000, 2))
    boxes = np.hstack([low, low + rng.integers(1, 60, low.shape)]).astype(np.float32)

    @jax.jit
    def inside(boxes):
        where = places.locate(
            (jnp.zeros((7, 7, 1)),),
            boxes,
            jnp.zeros(len(boxes), int),
            spatial_scales=(1.0,),
            aligned=True,
        )
        _, _, y_weights, _ = taps(where, (7, 7), sampling_ratio=3)
        return y_weights.sum(-1)

    start, bin_side = boxes[:, 1] - np.float32(0.5), (boxes[:, 3] - boxes[:, 1]) / np.float32(7)
    bins, samples = np.arange(7, dtype=np.float32), np.arange(3, dtype=np.float32) + np.float32(0.5)
    position = start[:, None] + bins * bin_side[:, None]
    position = position[..., None] + samples * bin_side[:, None, None] / np.float32(3)
    want = ((position >= -1) & (position <= 7)).mean(-1)
    np.testing.assert_allclose(inside(jnp.asarray(boxes)), want, atol=1e-5)


def test_linear_in_features(rng):
    features, boxes = random_inputs(rng, 5)
    align = functools.partial(roi_align, boxes=boxes, output_size=2)
    other = jnp.asarray(rng.normal(size=features.shape), jnp.float32)
    want = 2 * align(features) - align(other)
    np.testing.assert_allclose(align(2 * features - other), want, atol=1e-5)


def test_moving_the_map_and_the_box_together_changes_nothing(rng):
    features, boxes = random_inputs(rng, 5, 12, 14)
    boxes = boxes + 2
    moved = jnp.roll(features, (2, 3), axis=(0, 1))
    want = roi_align(features, boxes, output_size=2)
    got = roi_align(moved, boxes + jnp.array([[3.0, 2.0, 3.0, 2.0]]), output_size=2)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradients(rng, aligned):
    features, boxes = random_inputs(rng, CHUNK + 1)
    align = functools.partial(roi_align, output_size=2, aligned=aligned)
    total = jax.jit(lambda f: align(jnp.asarray(f), boxes))
    check_grads(total, (features,), 1, modes=["rev"], atol=2e-2, rtol=2e-2)

    # Boxes: finite differences of the oracle, in float64 where the step can be small.
    weights = rng.normal(size=(len(boxes), 2, 2, 2))
    got = jax.grad(lambda b: (align(features, b) * jnp.asarray(weights, jnp.float32)).sum())(boxes)
    maps = np.array(features, np.float64)
    oracle = functools.partial(roi_cases.align_one, size=(2, 2), counts=(2, 2), aligned=aligned)
    want = roi_cases.slopes(lambda n, box: (oracle(maps, box) * weights[n]).sum(), boxes)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_pyramid_reads_one_level_as_if_it_were_alone(rng):
    pyramid, boxes, levels = random_pyramid(rng, 9)
    align = functools.partial(pyramid_roi_align, spatial_scales=SCALES, output_size=2)
    got = jax.jit(align)(pyramid, boxes, levels)
    for index, (features, scale) in enumerate(zip(pyramid, SCALES, strict=True)):
        alone = functools.partial(roi_align, output_size=2, spatial_scale=scale)
        want = jax.jit(alone)(features, boxes)
        np.testing.assert_array_equal(got[levels == index], want[levels == index])
    assert len(np.unique(levels)) == 3


def test_pyramid_gradient_stays_on_the_level_read(rng):
    pyramid, boxes, _ = random_pyramid(rng, 3)
    levels = jnp.full(3, 1)

    def total(pyramid):
        out = pyramid_roi_align(pyramid, boxes, levels, spatial_scales=SCALES, output_size=2)
        return (out**2).sum()

    grads = jax.jit(jax.grad(total))(pyramid)
    assert not grads[0].any() and not grads[2].any()
    alone = functools.partial(roi_align, boxes=boxes, output_size=2, spatial_scale=SCALES[1])
    want = jax.jit(jax.grad(lambda features: (alone(features) ** 2).sum()))(pyramid[1])
    np.testing.assert_allclose(grads[1], want, rtol=1e-6)


def test_vmap_and_its_gradient_are_the_images_one_by_one(rng):
    inputs = [random_pyramid(rng, CHUNK + 2) for _ in range(3)]
    pyramids, boxes, levels = jax.tree.map(lambda *x: jnp.stack(x), *inputs)

    def total(pyramid, boxes, levels):
        out = pyramid_roi_align(pyramid, boxes, levels, spatial_scales=SCALES, output_size=2)
        return (out**2).sum(), out

    grad = jax.grad(total, argnums=(0, 1), has_aux=True)
    got = jax.jit(jax.vmap(grad))(pyramids, boxes, levels)
    one = jax.jit(grad)
    want = jax.tree.map(lambda *x: jnp.stack(x), *[one(*x) for x in inputs])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)

    # The gradient of a batched loss, as a training step takes it.
    def batched(pyramids):
        return jax.vmap(total)(pyramids, boxes, levels)[0].sum()

    got = jax.jit(jax.grad(batched))(pyramids)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want[0][0]
    )


@pytest.mark.parametrize("wrt", [0, 1], ids=["features", "boxes"])
def test_gradient_stores_no_samples(wrt):
    features, boxes = jnp.zeros((20, 20, 16)), jnp.zeros((512, 4))

    def total(features, boxes):
        return (roi_align(features, boxes, output_size=7) ** 2).sum()

    program = jax.jit(jax.grad(total, argnums=wrt)).lower(features, boxes).compile()
    output_bytes = 512 * 7 * 7 * 16 * 4  # Samples are 16 times that.
    assert program.memory_analysis().temp_size_in_bytes < 4 * output_bytes


@pytest.mark.parametrize("aligned", [False, True])
def test_bad_boxes_give_finite_values_and_gradients(rng, aligned):
    features, _ = random_inputs(rng, 1)
    inf = np.inf
    boxes = jnp.array(
        [[0, 0, 0, 0], [5, 5, 2, 2], [90, 90, 99, 99], [-9, -9, -5, -5], [-inf, 0, inf, 3]],
        jnp.float32,
    )
    align = functools.partial(roi_align, output_size=2, aligned=aligned)
    out, grads = jax.value_and_grad(lambda *x: (align(*x) ** 2).sum(), (0, 1))(features, boxes)
    assert np.isfinite(out) and all(np.isfinite(grad).all() for grad in grads)
    assert not align(features, boxes)[2:].any()


def test_no_boxes(rng):
    features, boxes = random_inputs(rng, 0)
    align = functools.partial(roi_align, output_size=3)
    assert align(features, boxes).shape == (0, 3, 3, 2)
    assert not jax.grad(lambda f: align(f, boxes).sum())(features).any()


def test_levels_beyond_the_pyramid_are_cut(rng):
    pyramid, boxes, _ = random_pyramid(rng, 2)
    align = functools.partial(pyramid_roi_align, spatial_scales=SCALES, output_size=2)
    got = align(pyramid, boxes, jnp.array([-1, 3]))
    np.testing.assert_array_equal(got, align(pyramid, boxes, jnp.array([0, 2])))


def test_half_precision_features_are_summed_in_float32(rng):
    features, boxes = random_inputs(rng, 4)
    half = features.astype(jnp.bfloat16)
    got, pull = jax.vjp(lambda f: roi_align(f, boxes, output_size=2), half)
    assert got.dtype == jnp.bfloat16
    want = roi_align(half.astype(jnp.float32), boxes, output_size=2)
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
    assert pull(got)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [{"output_size": 0}, {"output_size": (2, 0)}, {"sampling_ratio": 0}, {"spatial_scale": 0.0}],
    ids=str,
)
def test_refuses_wrong_options(rng, wrong):
    features, boxes = random_inputs(rng, 2)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        roi_align(features, boxes, **({"output_size": 2} | wrong))


def test_refuses_a_missing_scale_and_a_batch(rng):
    pyramid, boxes, levels = random_pyramid(rng, 2)
    with pytest.raises(ValueError, match="3 levels"):
        pyramid_roi_align(pyramid, boxes, levels, spatial_scales=(1.0,), output_size=2)
    with pytest.raises(jaxtyping.TypeCheckError):
        roi_align(pyramid[0][None], boxes[None], output_size=2)
