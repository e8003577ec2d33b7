import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import roi_cases

from jaxdet.regions.roi_pool import roi_pool


def edges(low, high, n_bins, limit):
    """Oracle: first and stop of each bin on an axis, as torchvision's code computes them."""
    bin_side = np.float32(max(high - low + 1, 1)) / np.float32(n_bins)
    first, stop = np.arange(n_bins, dtype=np.float32), np.arange(1, n_bins + 1, dtype=np.float32)
    bins = np.stack([np.floor(first * bin_side), np.ceil(stop * bin_side)], axis=-1)
    return np.clip(bins.astype(int) + low, 0, limit)


def pool_one(features, box, size):
    """Oracle: one box, bin by bin; box corners are integers."""
    x1, y1, x2, y2 = (int(corner) for corner in box)
    rows = edges(y1, y2, size[0], features.shape[0])
    columns = edges(x1, x2, size[1], features.shape[1])
    out = np.zeros((*size, features.shape[2]), np.float32)
    for p, q in itertools.product(*map(range, size)):
        cells = features[slice(*rows[p]), slice(*columns[q])]
        if cells.size:
            out[p, q] = cells.max(axis=(0, 1))
    return out


def random_inputs(rng, n, low=-3, high=12):
    corners = np.sort(rng.integers(low, high, (n, 2, 2)), axis=1).reshape(n, 4)
    features = jnp.asarray(rng.normal(size=(8, 9, 2)), jnp.float32)
    return features, jnp.asarray(corners, jnp.float32)


def test_by_hand(compiled):
    features = jnp.arange(16, dtype=jnp.float32).reshape(4, 4, 1)
    boxes = jnp.array([[0.0, 0.0, 3.0, 3.0], [1.0, 1.0, 1.0, 2.0], [9.0, 9.0, 11.0, 11.0]])
    got = compiled(functools.partial(roi_pool, output_size=2))(features, boxes)[..., 0]
    # Both corner cells are included; the second box is one cell wide; the third is outside.
    np.testing.assert_array_equal(got, [[[5, 7], [13, 15]], [[5, 5], [9, 9]], [[0, 0], [0, 0]]])


def test_rounds_halves_away_from_zero():
    features = jnp.arange(10, dtype=jnp.float32)[None, :, None]
    boxes = jnp.array([[5.0, 0.0, 9.0, 0.0]])  # 2.5 to 4.5 after scaling: cells 3, 4 and 5.
    got = roi_pool(features, boxes, output_size=(1, 3), spatial_scale=0.5)
    np.testing.assert_array_equal(got.ravel(), [3, 4, 5])


@pytest.mark.parametrize("size", [(3, 5), (7, 7)], ids=str)
def test_matches_oracle(rng, size):
    features, boxes = random_inputs(rng, 12)
    got = jax.jit(functools.partial(roi_pool, output_size=size))(features, boxes)
    want = [pool_one(np.array(features), box, size) for box in np.array(boxes)]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("n_bins", [3, 7])
def test_last_cells_of_bins_for_every_side(n_bins):
    # Many sides differ by a cell where XLA multiplies with 1 / n_bins.
    features = jnp.arange(120, dtype=jnp.float32)[None, :, None]
    sides = np.arange(120)
    boxes = jnp.asarray(np.stack([0 * sides, 0 * sides, sides, 0 * sides], 1), jnp.float32)
    got = jax.jit(functools.partial(roi_pool, output_size=(1, n_bins)))(features, boxes)
    want = [edges(0, side, n_bins, 120)[:, 1] - 1 for side in sides]
    np.testing.assert_array_equal(got[:, 0, :, 0], want)
    if n_bins == 7:  # Of 57 cells, 0 to 56; in float32, 7 x (57 / 7) is more than 57.
        assert want[56].tolist() == [8, 16, 24, 32, 40, 48, 57]


@pytest.mark.parametrize("cases", roi_cases.groups("pool"))
def test_matches_torchvision(cases):
    roi_cases.compare(roi_pool, cases, atol=1e-6)


def test_gradient_goes_to_the_first_of_equal_maxima():
    features = jnp.array([[1.0, 3.0, 0.0], [3.0, 3.0, 0.0]])[..., None]
    boxes = jnp.array([[0.0, 0.0, 2.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    grad = jax.grad(lambda f: roi_pool(f, boxes, output_size=1).sum())(features)
    np.testing.assert_array_equal(grad[..., 0], [[0, 1, 0], [0, 0, 0]])


def test_gradient_by_finite_differences(rng):
    features, boxes = random_inputs(rng, 4)
    weights = jnp.asarray(rng.normal(size=(4, 2, 2, 2)), jnp.float32)
    total = jax.jit(lambda f: (roi_pool(f, boxes, output_size=2) * weights).sum())
    direction = jnp.asarray(rng.normal(size=features.shape), jnp.float32)
    step = 1e-3  # Too small to change which cell is the largest.
    want = (total(features + step * direction) - total(features - step * direction)) / (2 * step)
    got = (jax.grad(total)(features) * direction).sum()
    np.testing.assert_allclose(got, want, rtol=2e-3)


def test_no_gradient_for_boxes(rng):
    features, boxes = random_inputs(rng, 4)
    grad = jax.jit(jax.grad(lambda b: roi_pool(features, b, output_size=2).sum()))(boxes)
    assert not grad.any()


def test_vmap_and_its_gradient_are_the_images_one_by_one(rng):
    features, boxes = map(jnp.stack, zip(*[random_inputs(rng, 5) for _ in range(3)], strict=True))

    def total(features, boxes):
        out = roi_pool(features, boxes, output_size=3)
        return (out**2).sum(), out

    grad = jax.grad(total, has_aux=True)
    got = jax.jit(jax.vmap(grad))(features, boxes)
    want = map(jnp.stack, zip(*map(jax.jit(grad), features, boxes), strict=True))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_bad_boxes_and_no_boxes(rng):
    features, none = random_inputs(rng, 0)
    pool = functools.partial(roi_pool, features, output_size=2)
    assert pool(none).shape == (0, 2, 2, 2)
    boxes = jnp.array([[0, 0, 0, 0], [5, 5, 2, 2], [-np.inf, -1e30, np.inf, 1e30]], jnp.float32)
    got = pool(boxes)
    assert np.isfinite(got).all()
    # No sides, negative sides: one cell.
    np.testing.assert_array_equal(got[0], np.broadcast_to(features[0, 0], (2, 2, 2)))
    np.testing.assert_array_equal(got[1], np.broadcast_to(features[5, 5], (2, 2, 2)))


@pytest.mark.parametrize(
    "wrong", [{"output_size": 0}, {"output_size": (0, 2)}, {"spatial_scale": -1.0}], ids=str
)
def test_refuses_wrong_options(rng, wrong):
    features, boxes = random_inputs(rng, 2)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        roi_pool(features, boxes, **({"output_size": 2} | wrong))


def test_refuses_a_batch(rng):
    features, boxes = random_inputs(rng, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        roi_pool(features[None], boxes, output_size=2)
