import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.image import warp
from jaxdet.regions.roi_align import roi_align

# Made by tests/golden/make_warp.py.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/warp.npz")


def random_image(rng, height=5, width=7, n_channels=2):
    return jnp.asarray(rng.normal(size=(height, width, n_channels)), jnp.float32)


def sample_one(image, x, y):
    """Oracle: every cell by its distance, as the paper's equation."""
    total = np.zeros(image.shape[2])
    for i, j in np.ndindex(*image.shape[:2]):
        total += image[i, j] * max(0, 1 - abs(x - j)) * max(0, 1 - abs(y - i))
    return total


def test_sample_by_hand(compiled):
    image = jnp.array([[0.0, 1], [2, 3]])[..., None]
    points = jnp.array([[0.0, 0], [1, 1], [0.5, 0], [0.5, 0.5], [-0.5, 0], [1, 1.5], [9, 9]])
    got = compiled(warp.bilinear_sample)(image, points)
    np.testing.assert_allclose(got[:, 0], [0, 3, 0.5, 1.5, 0, 1.5, 0])


def test_sample_meets_oracle(rng):
    image, points = random_image(rng), rng.uniform(-2, 9, (4, 6, 2)).astype(np.float32)
    got = jax.jit(warp.bilinear_sample)(image, jnp.asarray(points))
    want = [[sample_one(np.array(image, np.float64), *point) for point in row] for row in points]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("corners", [False, True], ids=["edges", "corners"])
def test_matches_torch(corners):
    name = "corners" if corners else "edges"
    images, thetas, cotangent = (jnp.asarray(GOLDEN[k]) for k in ("images", "theta", "cotangent"))
    grid = functools.partial(warp.affine_grid, size=(3, 4), align_corners=corners)
    grids = jax.jit(jax.vmap(grid))(thetas)
    np.testing.assert_allclose(grids, GOLDEN[f"grid_{name}"], atol=1e-5)
    assert len(images) >= 50
    grids = jnp.asarray(GOLDEN[f"grid_{name}"])  # A last bit may be another cell's side.

    def sample(image, grid, outside):
        points = warp.to_cells(grid, (5, 7), align_corners=corners)
        if outside == "border":
            points = jnp.clip(points, 0, jnp.array([[[6.0, 4.0]]]))
        return warp.bilinear_sample(image, points)

    for outside in ("zeros", "border"):
        run = jax.vmap(functools.partial(sample, outside=outside))
        got, pull = jax.vjp(jax.jit(run), images, grids)
        np.testing.assert_allclose(got, GOLDEN[f"sample_{name}_{outside}"], atol=1e-5)
        image_grad, points_grad = pull(cotangent)
        np.testing.assert_allclose(
            image_grad, GOLDEN[f"image_grad_{name}_{outside}"], rtol=1e-5, atol=1e-5
        )
        # Off the kinks: points on a row or column, or at the border that goes on.
        points = np.array(warp.to_cells(grids, (5, 7), align_corners=corners))
        smooth = (np.abs(points - np.round(points)) > 1e-4).all(-1)
        want = GOLDEN[f"points_grad_{name}_{outside}"][smooth]
        np.testing.assert_allclose(points_grad[smooth], want, rtol=1e-5, atol=2e-5)
        assert smooth.mean() > 0.7


def test_identity_grid_gives_the_image_back(rng):
    image = random_image(rng)
    for corners in (False, True):
        grid = warp.affine_grid(jnp.eye(2, 3), (5, 7), align_corners=corners)
        points = warp.to_cells(grid, (5, 7), align_corners=corners)
        np.testing.assert_allclose(warp.bilinear_sample(image, points), image, atol=1e-5)


def test_gradients(rng):
    image = random_image(rng)
    # Not on a row or column, where the gradient jumps.
    whole = np.stack(np.meshgrid(range(-1, 8), range(-1, 6)), -1)
    points = jnp.asarray(whole + rng.uniform(0.1, 0.9, whole.shape), jnp.float32)
    check_grads(jax.jit(warp.bilinear_sample), (image, points), 1, modes=["rev"], eps=1e-2)


def test_gradients_of_a_map_by_finite_differences(rng):
    image = random_image(rng)
    weights = rng.normal(size=(3, 4, 2))
    theta = np.array([[0.55, 0.13, 0.05], [-0.21, 0.62, 0.03]])

    def total(theta):
        points = warp.to_cells(warp.affine_grid(theta, (3, 4)), (5, 7))
        return (warp.bilinear_sample(image, points) * jnp.asarray(weights, jnp.float32)).sum()

    def total_by_hand(theta):
        value = 0.0
        for i, j in itertools.product(range(3), range(4)):
            x, y = theta @ [(2 * j + 1) / 4 - 1, (2 * i + 1) / 3 - 1, 1]
            at = ((x + 1) * 7 - 1) / 2, ((y + 1) * 5 - 1) / 2
            value += (sample_one(np.array(image, np.float64), *at) * weights[i, j]).sum()
        return value

    got, want = jax.grad(total)(jnp.asarray(theta, jnp.float32)), np.zeros((2, 3))
    for index in np.ndindex(2, 3):
        step = np.zeros((2, 3))
        step[index] = 1e-6
        want[index] = (total_by_hand(theta + step) - total_by_hand(theta - step)) / 2e-6
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def align_by_warping(features, boxes, *, size, ratio):
    """RoIAlign as a spatial transformer: an affine map for each box, then the mean of samples."""
    height, width, _ = features.shape

    def pool(box):
        # From the target's (-1, 1) to the box, from cells to the source's (-1, 1).
        (x1, y1, x2, y2), zero = box, jnp.zeros(())
        row_x = jnp.stack([(x2 - x1) / width, zero, (x1 + x2 + 1) / width - 1])
        row_y = jnp.stack([zero, (y2 - y1) / height, (y1 + y2 + 1) / height - 1])
        grid = warp.affine_grid(jnp.stack([row_x, row_y]), (size[0] * ratio, size[1] * ratio))
        samples = warp.bilinear_sample(features, warp.to_cells(grid, (height, width)))
        return samples.reshape(size[0], ratio, size[1], ratio, -1).mean((1, 3))

    return jax.vmap(pool)(boxes)


def test_roi_align_is_a_special_case(rng):
    features = random_image(rng, 9, 11, 3)
    low = rng.uniform(0, 4, (20, 2))
    boxes = jnp.asarray(np.hstack([low, low + rng.uniform(1, 4, (20, 2))]), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(20, 2, 3, 3)), jnp.float32)
    align = functools.partial(roi_align, output_size=(2, 3), sampling_ratio=2)
    want, pull = jax.vjp(jax.jit(align), features, boxes)
    by_warping = functools.partial(align_by_warping, size=(2, 3), ratio=2)
    got, pull_by_warping = jax.vjp(jax.jit(by_warping), features, boxes)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for one, other in zip(pull_by_warping(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_far_points_are_zero_with_finite_gradients(rng):
    points = jnp.array([[1e9, 0], [-1e9, 2], [np.inf, 1], [np.nan, 1], [3e38, -3e38]])
    got, pull = jax.vjp(warp.bilinear_sample, random_image(rng), points)
    assert not np.array(got).any()
    assert all(np.isfinite(grad).all() for grad in pull(jnp.ones_like(got)))


def test_refuses_wrong_arguments(rng):
    with pytest.raises(ValueError, match=r"size must be positive. Got \(0, 3\)"):
        warp.affine_grid(jnp.eye(2, 3), (0, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        warp.bilinear_sample(random_image(rng)[None], jnp.zeros((3, 2)))
