import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import roi_cases

from jaxdet.regions.adaptive_roi_align import (
    NEAR,
    adaptive_bins,
    adaptive_pyramid_roi_align,
    adaptive_roi_align,
)
from jaxdet.regions.roi_align import roi_align

SCALES = (1 / 2, 1 / 4)
SIZE = (2, 3)
N = 12  # Most tests share their shapes, so that they are compiled once.


def random_inputs(rng, n=N):
    low, side = rng.uniform(-3, 7, (n, 2)), rng.uniform(0.2, 9, (n, 2))
    boxes = jnp.asarray(np.hstack([low, low + side]), jnp.float32)
    return jnp.asarray(rng.normal(size=(8, 9, 2)), jnp.float32), boxes


def random_pyramid(rng):
    pyramid = tuple(
        jnp.asarray(rng.normal(size=(*size, 2)), jnp.float32) for size in [(8, 9), (6, 12)]
    )
    _, boxes = random_inputs(rng)
    return pyramid, boxes * 2, jnp.asarray(rng.integers(0, 2, N), jnp.int32)


def pyramid_align(*image):
    return adaptive_pyramid_roi_align(*image, spatial_scales=SCALES, output_size=SIZE)


def align_one(features, box, *, aligned):
    """Oracle: one box in bins of `SIZE`, sample by sample."""
    counts = roi_cases.adaptive_counts(box, SIZE, aligned=aligned)
    return roi_cases.align_one(features, box, SIZE, counts, aligned=aligned)


def test_by_hand(compiled):
    # Values are the column. Bins of 3 cells, so 3 samples: at 1.5, 2.5, 3.5 and 4.5, 5.5, 6.5.
    features = jnp.tile(jnp.arange(6, dtype=jnp.float32)[None, :, None], (4, 1, 1))
    align = functools.partial(adaptive_roi_align, output_size=(1, 2))
    got = compiled(align)(features, jnp.array([[1.0, 0, 7, 4]]))
    # The last column goes on for a cell: 5.5 counts as 5; 6.5 is outside and counts as 0.
    np.testing.assert_allclose(got.ravel(), [2.5, (4.5 + 5) / 3], rtol=1e-6)


@pytest.mark.parametrize("aligned", [False, True])
def test_matches_oracle(rng, aligned):
    features, boxes = random_inputs(rng)
    got = adaptive_roi_align(features, boxes, output_size=SIZE, aligned=aligned)
    want = [align_one(np.array(features), box, aligned=aligned) for box in np.array(boxes)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cases", roi_cases.groups("adaptive"))
def test_matches_torchvision(cases):
    roi_cases.compare(adaptive_roi_align, cases, atol=3e-6)


def test_weights_are_means_over_samples():
    limit = 8
    starts, sides = [-40.3, -1, 0.25, 7], [0.01, 0.9999, 1, 1.0001, 2, 2.0001, 5.5, 60, 1e5]
    pairs = np.array(list(itertools.product(starts, sides)), np.float32)

    @jax.jit
    @jax.vmap
    def weigh(start, side):
        bins = adaptive_bins(start, side, jnp.int32(limit), 1)
        return bins.first[0], bins.n_cells, jax.vmap(bins.weights)(jnp.arange(limit))[:, 0]

    got = jax.tree.map(np.array, weigh(*pairs.T))
    for (start, side), first, n_cells, weights in zip(pairs, *got, strict=True):
        count = int(np.ceil(side))
        position = start + (np.arange(count) + 0.5) * (side / count)
        position = position[(position >= -1) & (position <= limit)].clip(0, limit - 1)
        near = 1 - np.abs(position[:, None] - (first + np.arange(limit)))
        tolerance = 1e-6 + 2e-6 * min(1, side / 100)
        np.testing.assert_allclose(weights, np.maximum(near, 0).sum(0) / count, atol=tolerance)
        # No cell that counts is missing.
        np.testing.assert_allclose(weights[:n_cells].sum(), len(position) / count, atol=1e-5)


def test_no_more_samples_are_near_a_cell():
    # Two samples or more are more than half a cell apart.
    for side in np.nextafter(np.arange(1, 50), 99):
        spacing = side / np.ceil(side)
        assert 2 / spacing + 1 <= NEAR


def test_is_roi_align_where_counts_are_equal(rng):
    low = rng.uniform(-1, 4, (N, 2))
    side = rng.uniform([6.1, 4.1], [8.9, 5.9], (N, 2))  # Bins of 2 to 3 cells.
    boxes = jnp.asarray(np.hstack([low, low + side]), jnp.float32)
    features, _ = random_inputs(rng)
    cotangent = jnp.asarray(rng.normal(size=(N, *SIZE, 2)), jnp.float32)
    fixed = functools.partial(roi_align, sampling_ratio=3)
    (got, pull), (want, pull_fixed) = (
        jax.vjp(functools.partial(align, output_size=SIZE), features, boxes)
        for align in (adaptive_roi_align, fixed)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(got, want)
    jax.tree.map(close, pull(cotangent), pull_fixed(cotangent))


@pytest.mark.parametrize("aligned", [False, True])
def test_gradients_by_finite_differences(rng, aligned):
    features, boxes = random_inputs(rng)
    weights = rng.normal(size=(N, *SIZE, 2))
    align = functools.partial(adaptive_roi_align, output_size=SIZE, aligned=aligned)
    _, pull = jax.vjp(align, features, boxes)
    by_features, by_boxes = pull(jnp.asarray(weights, jnp.float32))
    maps, direction = np.array(features, np.float64), rng.normal(size=features.shape)
    pairs = list(zip(np.array(boxes), weights, strict=True))
    want = sum(
        (align_one(direction, box, aligned=aligned) * w).sum() for box, w in pairs
    )  # Linear.
    np.testing.assert_allclose((by_features * direction).sum(), want, rtol=1e-4)
    want = roi_cases.slopes(
        lambda n, box: (align_one(maps, box, aligned=aligned) * weights[n]).sum(), boxes
    )
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(by_boxes, want, rtol=1e-3, atol=1e-3)


def test_pyramid_reads_one_level_as_if_it_were_alone(rng):
    pyramid, boxes, levels = random_pyramid(rng)
    cotangent = jnp.asarray(rng.normal(size=(N, *SIZE, 2)), jnp.float32)
    got, pull = jax.vjp(lambda *x: pyramid_align(*x, levels), pyramid, boxes)
    by_features, by_boxes = pull(cotangent)
    assert len(np.unique(levels)) == 2
    for index, (features, scale) in enumerate(zip(pyramid, SCALES, strict=True)):
        here = levels == index
        alone = functools.partial(adaptive_roi_align, output_size=SIZE, spatial_scale=scale)
        want, pull = jax.vjp(alone, features, boxes)
        want_by_features, want_by_boxes = pull(cotangent * here[:, None, None, None])
        np.testing.assert_array_equal(got[here], want[here])
        np.testing.assert_allclose(by_features[index], want_by_features, atol=1e-6)
        np.testing.assert_allclose(by_boxes[here], want_by_boxes[here], atol=1e-6)


def test_vmap_and_its_gradient_are_the_images_one_by_one(rng):
    inputs = [random_pyramid(rng) for _ in range(3)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *inputs)

    def total(*image):
        out = pyramid_align(*image)
        return (out**2).sum(), out

    grad = jax.grad(total, argnums=(0, 1), has_aux=True)
    got = jax.jit(jax.vmap(grad))(*batch)
    want = jax.tree.map(lambda *x: jnp.stack(x), *[grad(*image) for image in inputs])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("aligned", [False, True])
def test_bad_boxes_give_finite_values_and_gradients(rng, aligned):
    features, _ = random_inputs(rng)
    inf, nan = np.inf, np.nan
    outside = [[90, 90, 99, 99], [-9, -9, -5, -5], [-inf, 0, inf, 3], [nan, 0, 4, 4]]
    outside += [[0, 0, nan, 4], [1e30, 0, 3e38, 4]]
    degenerate = [[0, 0, 0, 0], [5, 5, 2, 2], [5, 1, 2, 3], [3, 1, 3, 5]]
    huge = [[-1e6, -1e6, 1e6, 1e6], [-3e38, -3e38, 3e38, 3e38]]
    boxes = jnp.array(outside + degenerate + huge, jnp.float32)
    align = functools.partial(adaptive_roi_align, output_size=SIZE, aligned=aligned)
    got, pull = jax.vjp(align, features, boxes)
    assert all(np.isfinite(x).all() for x in (got, *pull(got)))
    assert not got[:6].any()
    # Without an area: no samples, or grown to a cell.
    assert not got[6:10].any() if aligned else got[6:10].any((1, 2, 3)).all()


def test_no_boxes(rng):
    features, boxes = random_inputs(rng, 0)
    got, pull = jax.vjp(lambda f: adaptive_roi_align(f, boxes, output_size=SIZE), features)
    assert got.shape == (0, *SIZE, 2)
    assert not pull(got)[0].any()


def test_half_precision_features_are_summed_in_float32(rng):
    features, boxes = random_inputs(rng)
    half = features.astype(jnp.bfloat16)
    got, pull = jax.vjp(lambda f: adaptive_roi_align(f, boxes, output_size=SIZE), half)
    assert got.dtype == jnp.bfloat16
    want = adaptive_roi_align(half.astype(jnp.float32), boxes, output_size=SIZE)
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
    assert pull(got)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("wrong", [{"output_size": 0}, {"spatial_scale": 0.0}], ids=str)
def test_refuses_wrong_options(rng, wrong):
    features, boxes = random_inputs(rng)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        adaptive_roi_align(features, boxes, **({"output_size": 2} | wrong))


def test_refuses_a_batch(rng):
    features, boxes = random_inputs(rng)
    with pytest.raises(jaxtyping.TypeCheckError):
        adaptive_roi_align(features[None], boxes[None], output_size=2)
