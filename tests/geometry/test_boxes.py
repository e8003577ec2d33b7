import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import boxes as box_ops

# A line, a point at 0 as in padded rows, and corners in the wrong order (one side, both sides).
DEGENERATE = jnp.array(
    [[3.0, 4, 3, 9], [0, 0, 0, 0], [8, 2, 5, 9], [9, 9, 2, 2]], dtype=jnp.float32
)


def random_boxes(rng, n):
    low, side = rng.uniform(0, 90, (n, 2)), rng.uniform(5, 50, (n, 2))
    return jnp.asarray(np.hstack([low, low + side]), jnp.float32)


def test_area_by_hand(compiled):
    boxes = jnp.array([[[1.0, 2, 4, 7]], [[0, 0, 10, 0.5]]])
    np.testing.assert_array_equal(compiled(box_ops.area)(boxes), [[15], [5]])


def test_degenerate_boxes_have_no_area():
    np.testing.assert_array_equal(box_ops.area(DEGENERATE), 0)


@pytest.mark.parametrize("size", [np.array([10, 20]), jnp.array([10.0, 20.0])], ids=["int", "f"])
def test_clip_by_hand(compiled, size):
    boxes = jnp.array([[-5.0, -1, 25, 12], [3, 4, 5, 6], [30, 30, 40, 40]])
    got = compiled(box_ops.clip)(boxes, size)
    np.testing.assert_array_equal(got, [[0, 0, 20, 10], [3, 4, 5, 6], [20, 10, 20, 10]])


def test_frames_by_hand(compiled):
    got = compiled(box_ops.frames)(jnp.array([[[8, 9]], [[3, 0]]], jnp.int32))
    np.testing.assert_array_equal(got, [[[0, 0, 9, 8]], [[0, 0, 0, 3]]])
    assert got.dtype == jnp.float32


def test_centers_and_sizes_by_hand(compiled):
    centers, sizes = compiled(box_ops.centers_and_sizes)(jnp.array([2.0, 10, 6, 11]))
    np.testing.assert_array_equal(centers, [4, 10.5])
    np.testing.assert_array_equal(sizes, [4, 1])


def test_from_centers_inverts(compiled, rng):
    boxes = random_boxes(rng, 6).reshape(2, 3, 4)
    got = compiled(box_ops.from_centers_and_sizes)(*box_ops.centers_and_sizes(boxes))
    np.testing.assert_allclose(got, boxes, atol=2e-5)  # Two roundings at 100 px.
