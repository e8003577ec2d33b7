import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import roi_cases

from jaxdet.regions.adaptive_roi_align import adaptive_roi_align
from jaxdet.regions.position_sensitive import adaptive_ps_roi_align, ps_roi_align, ps_roi_pool
from jaxdet.regions.roi_align import roi_align

SIZE = (2, 3)
N, K = 9, 2
OPERATORS = [ps_roi_align, adaptive_ps_roi_align, ps_roi_pool]
ALIGNS = [
    (ps_roi_align, functools.partial(roi_align, aligned=True)),
    (adaptive_ps_roi_align, functools.partial(adaptive_roi_align, aligned=True)),
]
each = pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
each_align = pytest.mark.parametrize(("operator", "plain"), ALIGNS, ids=["fixed", "adaptive"])


def random_inputs(rng, n=N):
    low, side = rng.uniform(-3, 6, (n, 2)), rng.uniform(0.2, 8, (n, 2))
    boxes = jnp.asarray(np.hstack([low, low + side]), jnp.float32)
    return jnp.asarray(rng.normal(size=(7, 8, K * SIZE[0] * SIZE[1])), jnp.float32), boxes


def own_maps(pooled):
    """Oracle: of plainly pooled features, those of each bin's own maps; torchvision's order."""
    out = np.zeros((*pooled.shape[:-1], K))
    for p, q, i in itertools.product(*map(range, (*SIZE, K))):
        out[..., p, q, i] = pooled[..., p, q, (i * SIZE[0] + p) * SIZE[1] + q]
    return out


def pool_one(features, box):
    """Oracle: one box in whole numbers; its corners are integers."""
    height, width = features.shape[:2]
    x1, y1, x2, y2 = (int(corner) for corner in box)
    w, h = max(x2 - x1, 1), max(y2 - y1, 1)
    pooled = np.zeros((*SIZE, features.shape[2]))
    for p, q in itertools.product(*map(range, SIZE)):
        rows = y1 + np.array([p * h // SIZE[0], -(-(p + 1) * h // SIZE[0])])
        columns = x1 + np.array([q * w // SIZE[1], -(-(q + 1) * w // SIZE[1])])
        rows, columns = (
            rows.clip(0, height - 1),
            columns.clip(0, width - 1),
        )  # The last is left out.
        cells = features[slice(*rows), slice(*columns)]
        if cells.size:
            pooled[p, q] = cells.mean((0, 1), np.float64)
    return own_maps(pooled)


@each
def test_each_bin_reads_its_own_map_by_hand(compiled, operator):
    # Constant maps, so a bin gives the number of its map.
    features = jnp.tile(jnp.arange(12, dtype=jnp.float32)[None, None], (9, 9, 1))
    pool = functools.partial(operator, output_size=SIZE)
    got = compiled(pool)(features, jnp.array([[1.0, 1, 7, 7]]))
    want = [[[0, 6], [1, 7], [2, 8]], [[3, 9], [4, 10], [5, 11]]]
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_pool_by_hand():
    features = jnp.tile(jnp.arange(6, dtype=jnp.float32)[None, :, None], (4, 1, 2))
    pool = functools.partial(ps_roi_pool, features, output_size=(1, 2), spatial_scale=0.5)
    # Columns 0.5 and 6.5 round to 1 and 7; bins are 1 to 3 and 4 to 6, cut before the last, 5.
    np.testing.assert_allclose(pool(jnp.array([[1.0, 0, 13, 4]])).ravel(), [2, 4])
    # One cell; two bins of one cell; no cell.
    np.testing.assert_allclose(pool(jnp.array([[4.0, 0, 4, 0]])).ravel(), [2, 2])
    np.testing.assert_allclose(pool(jnp.array([[4.0, 0, 8, 4]])).ravel(), [2, 3])
    np.testing.assert_allclose(pool(jnp.array([[10.0, 0, 12, 4]])).ravel(), [0, 0])


@each_align
def test_is_plain_roi_align_of_each_bins_own_maps(rng, operator, plain):
    features, boxes = random_inputs(rng)
    cotangent = rng.normal(size=(N, *SIZE, K)).astype(np.float32)
    options = {"output_size": SIZE, "spatial_scale": 0.8}
    got, pull = jax.vjp(functools.partial(operator, **options), features, boxes)
    pooled, pull_plain = jax.vjp(functools.partial(plain, **options), features, boxes)
    np.testing.assert_allclose(got, own_maps(np.array(pooled)), atol=1e-6)
    spread = np.zeros(pooled.shape, np.float32)
    for p, q, i in itertools.product(*map(range, (*SIZE, K))):
        spread[:, p, q, (i * SIZE[0] + p) * SIZE[1] + q] = cotangent[:, p, q, i]
    want = pull_plain(jnp.asarray(spread))
    for one, other in zip(pull(jnp.asarray(cotangent)), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_pool_matches_oracle(rng):
    features, boxes = random_inputs(rng)
    boxes = jnp.round(boxes)
    got = ps_roi_pool(features, boxes, output_size=SIZE)
    want = [pool_one(np.array(features), box) for box in np.array(boxes)]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("cases", roi_cases.groups("ps_align"))
def test_align_matches_torchvision(cases):
    roi_cases.compare(ps_roi_align, cases, atol=3e-6)


@pytest.mark.parametrize("cases", roi_cases.groups("ps_adaptive"))
def test_adaptive_align_matches_torchvision(cases):
    roi_cases.compare(adaptive_ps_roi_align, cases, atol=3e-6)


@pytest.mark.parametrize("cases", roi_cases.groups("ps_pool"))
def test_pool_matches_torchvision(cases):
    roi_cases.compare(ps_roi_pool, cases, atol=3e-6)


@each_align
def test_gradients_for_boxes_by_finite_differences(rng, operator, plain):
    del plain
    features, boxes = random_inputs(rng)
    weights = rng.normal(size=(N, *SIZE, K))
    maps = np.array(features, np.float64)

    def total(n, box):
        adaptive = roi_cases.adaptive_counts(box, SIZE, aligned=True)
        counts = adaptive if operator is adaptive_ps_roi_align else (2, 2)
        pooled = roi_cases.align_one(maps, box, SIZE, counts, aligned=True)
        return (own_maps(pooled) * weights[n]).sum()

    _, pull = jax.vjp(lambda boxes: operator(features, boxes, output_size=SIZE), boxes)
    want = roi_cases.slopes(total, boxes)
    assert np.abs(want).max() > 0.1
    got = pull(jnp.asarray(weights, jnp.float32))[0]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@each
def test_gradients_for_features_by_finite_differences(rng, operator):
    features, boxes = random_inputs(rng)
    cotangent = rng.normal(size=(N, *SIZE, K)).astype(np.float32)
    pool = functools.partial(operator, output_size=SIZE)
    got, pull = jax.vjp(lambda f: pool(f, boxes), features)
    direction = jnp.asarray(rng.normal(size=features.shape), jnp.float32)
    step = pool(features + direction, boxes) - got  # Of any length: the operators are linear.
    want = (np.array(step, np.float64) * cotangent).sum()
    np.testing.assert_allclose((pull(jnp.asarray(cotangent))[0] * direction).sum(), want, rtol=1e-4)


def test_no_gradient_for_the_boxes_of_pool(rng):
    features, boxes = random_inputs(rng)
    got, pull = jax.vjp(lambda boxes: ps_roi_pool(features, boxes, output_size=SIZE), boxes)
    assert not pull(got)[0].any()


@each
def test_vmap_and_its_gradient_are_the_images_one_by_one(rng, operator):
    features, boxes = map(jnp.stack, zip(*[random_inputs(rng) for _ in range(2)], strict=True))

    def total(features, boxes):
        out = operator(features, boxes, output_size=SIZE)
        return (out**2).sum(), out

    grad = jax.grad(total, has_aux=True)
    got = jax.jit(jax.vmap(grad))(features, boxes)
    want = map(jnp.stack, zip(*map(jax.jit(grad), features, boxes), strict=True))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@each
def test_bad_boxes_give_finite_values_and_gradients(rng, operator):
    features, _ = random_inputs(rng)
    inf, nan = np.inf, np.nan
    outside = [[90, 90, 99, 99], [-99, -99, -95, -95], [-inf, 0, -inf, 3], [inf, 0, inf, 4]]
    inside = [[0, 0, 0, 0], [5, 5, 2, 2], [-1e6, -1e6, 1e6, 1e6], [nan, 0, 4, 4], [-inf, 0, inf, 3]]
    boxes = jnp.array(outside + inside, jnp.float32)
    got, pull = jax.vjp(functools.partial(operator, output_size=SIZE), features, boxes)
    assert all(np.isfinite(x).all() for x in (got, *pull(got)))
    assert not got[:4].any()
    if operator is adaptive_ps_roi_align:
        assert not got[4:6].any()  # No samples.


@each
def test_no_boxes(rng, operator):
    features, boxes = random_inputs(rng, 0)
    got, pull = jax.vjp(lambda f: operator(f, boxes, output_size=SIZE), features)
    assert got.shape == (0, *SIZE, K)
    assert not pull(got)[0].any()


@each
def test_refuses_wrong_arguments(rng, operator):
    features, boxes = random_inputs(rng)
    for wrong in ({"output_size": 0}, {"spatial_scale": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            operator(features, boxes, **({"output_size": SIZE} | wrong))
    with pytest.raises(ValueError, match="25 channels"):
        operator(features, boxes, output_size=5)
    with pytest.raises(jaxtyping.TypeCheckError):
        operator(features[None], boxes, output_size=SIZE)


def test_refuses_no_samples(rng):
    features, boxes = random_inputs(rng)
    with pytest.raises(ValueError, match="sampling_ratio"):
        ps_roi_align(features, boxes, output_size=SIZE, sampling_ratio=0)
