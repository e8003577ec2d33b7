import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxdet.regions.levels import assign_levels

# Made by tests/golden/make_regions.py.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/regions.npz")


def squares(*sides):
    return jnp.array([[3.0, 5.0, 3.0 + side, 5.0 + side] for side in sides])


def test_thresholds_by_hand(compiled):
    # The paper's: 224 is level 4; half of it, one lower.
    boxes = squares(20, 56, 111, 112, 223, 224, 447, 448, 5000)
    got = compiled(functools.partial(assign_levels, n_levels=4))(boxes)
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 1, 2, 2, 3, 3])
    assert got.dtype == jnp.int32


def test_matches_torchvision():
    assign = jax.jit(functools.partial(assign_levels, n_levels=4))
    np.testing.assert_array_equal(assign(jnp.asarray(GOLDEN["level_boxes"])), GOLDEN["levels"])


def test_matches_oracle(rng):
    low, side = rng.uniform(0, 50, (40, 2)), rng.uniform(1, 200, (40, 2))
    got = assign_levels(
        jnp.asarray(np.hstack([low, low + side]), jnp.float32),
        n_levels=3,
        canonical_size=64.0,
        canonical_level=3,
        min_level=2,
    )
    levels = [math.floor(3 + math.log2(math.sqrt(w * h) / 64)) for w, h in side]
    np.testing.assert_array_equal(got, np.clip(levels, 2, 4) - 2)
    assert len(np.unique(got)) == 3


def test_only_the_area_counts():
    wide = jnp.array([[0.0, 0.0, 448.0, 112.0], [7.0, 9.0, 7.0 + 112.0, 9.0 + 448.0]])
    np.testing.assert_array_equal(assign_levels(wide, n_levels=4), [2, 2])


def test_boxes_without_area_go_to_the_lowest_level():
    boxes = jnp.array([[0, 0, 0, 0], [5, 5, 900, 5], [900, 900, 5, 5]], jnp.float32)
    assign = functools.partial(assign_levels, n_levels=4, min_level=-30)
    np.testing.assert_array_equal(assign(boxes), [3, 3, 3])
    np.testing.assert_array_equal(assign_levels(boxes, n_levels=4), [0, 0, 0])
    assert assign_levels(boxes[:0], n_levels=4).shape == (0,)


def test_one_level():
    np.testing.assert_array_equal(assign_levels(squares(1, 224, 5000), n_levels=1), [0, 0, 0])


@pytest.mark.parametrize("wrong", [{"n_levels": 0}, {"canonical_size": 0.0}], ids=str)
def test_refuses_wrong_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        assign_levels(squares(9), **({"n_levels": 4} | wrong))


def test_refuses_a_batch():
    with pytest.raises(jaxtyping.TypeCheckError):
        assign_levels(squares(9)[None], n_levels=4)
