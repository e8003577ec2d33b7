import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.regions import places

PYRAMID = tuple(jnp.zeros((*size, 1)) for size in [(12, 16), (6, 8), (3, 5)])
SCALES = (1.0, 0.5, 0.25)


def locate(boxes, levels, *, aligned=False):
    find = functools.partial(places.locate, spatial_scales=SCALES, aligned=aligned)
    return jax.jit(find)(PYRAMID, jnp.array(boxes), jnp.array(levels))


def test_places_by_hand():
    boxes = [[2.0, 4, 6, 10], [2.0, 4, 6, 10], [2.0, 4, 6, 10], [6.0, 4, 5, 4.5]]
    got = locate(boxes, [0, 1, 2, 1])
    np.testing.assert_array_equal(got.starts, [[4, 2], [2, 1], [1, 0.5], [2, 3]])
    np.testing.assert_array_equal(got.sides, [[6, 4], [3, 2], [1.5, 1], [1, 1]])
    np.testing.assert_array_equal(got.limits, [[12, 16], [6, 8], [3, 5], [6, 8]])
    np.testing.assert_array_equal(got.offsets, [0, 192, 240, 192])
    got = locate(boxes, [0, 1, 2, 1], aligned=True)
    np.testing.assert_array_equal(got.starts, [[3.5, 1.5], [1.5, 0.5], [0.5, 0], [1.5, 2.5]])
    np.testing.assert_array_equal(got.sides, [[6, 4], [3, 2], [1.5, 1], [0.25, -0.5]])


def test_levels_beyond_the_pyramid_are_cut():
    got = locate([[2.0, 4, 6, 10]] * 2, [-1, 3])
    np.testing.assert_array_equal(got.offsets, [0, 240])


def test_bins_of():
    assert places.bins_of(3) == (3, 3) and places.bins_of((2, 5)) == (2, 5)
    with pytest.raises(ValueError, match=r"output_size .* Got \(2, 0\)"):
        places.bins_of((2, 0))


@pytest.mark.parametrize("scales", [(), (1.0, 0.5), (1.0, 0.5, 0.0)], ids=str)
def test_refuses_wrong_scales(scales):
    with pytest.raises(ValueError, match="scale"):
        places.locate(
            PYRAMID, jnp.zeros((1, 4)), jnp.zeros(1, int), spatial_scales=scales, aligned=True
        )
