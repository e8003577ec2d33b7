import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.image import crops

crop = jax.jit(crops.crop_resized, static_argnames="size")


def naive_line(values, low, high, size):
    """One row: each cell of the crop is a weighted mean of the cells under its triangle."""
    step = (high - low) / size
    out = []
    for i in range(size):
        middle = low + (i + 0.5) * step
        weights = [max(0, 1 - abs(middle - (j + 0.5)) / max(step, 1)) for j in range(len(values))]
        inside = 0 <= middle <= len(values)
        out.append(np.dot(weights, values) / sum(weights) if inside else 0.0)
    return np.array(out)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    "box", [(0, 0, 9, 7), (2.3, 1.6, 4.1, 5.2), (-3, 2, 4, 11), (3, -40, 60, 20), (20, 20, 25, 25)]
)
def test_against_a_loop(rng, box, size):
    image = rng.normal(size=(7, 9, 2)).astype(np.float32)
    x0, y0, x1, y1 = box
    rows = np.apply_along_axis(naive_line, 0, image.astype(np.float64), y0, y1, size)
    want = np.apply_along_axis(naive_line, 1, rows, x0, x1, size)
    got = crop(image, jnp.array([box], jnp.float32), size)
    np.testing.assert_allclose(got, want[None], atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 24), (10, 10)])
def test_of_the_whole_it_is_a_resize(rng, shape):
    image = jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)
    whole = jnp.array([[0.0, 0, shape[1], shape[0]]])
    want = jax.image.resize(image, (10, 10, 3), "linear")
    np.testing.assert_allclose(crop(image, whole, 10)[0], want, atol=1e-5)


def test_cells_of_one_to_one_are_copied(rng):
    image = rng.normal(size=(9, 9, 1)).astype(np.float32)
    got = crop(image, jnp.array([[2.0, 3, 6, 7]]), 4)
    np.testing.assert_array_equal(got[0], image[3:7, 2:6])


@pytest.mark.parametrize("box", [(3, 3, 3, 3), (1e6, 2, 1e6 + 1, 3), (-1e7, -1e7, -1e7, 0)])
def test_boxes_without_a_picture_are_finite(box):
    run = functools.partial(crops.crop_resized, size=4)
    assert np.isfinite(jax.jit(run)(jnp.ones((8, 8, 1)), jnp.array([box], jnp.float32))).all()
