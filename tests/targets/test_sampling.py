import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.targets import sampling

M = 40
sample_16 = jax.jit(functools.partial(sampling.sample_balanced, size=16, positive_fraction=0.3))


def masks(rng, n_positive, n_negative, m=M):
    order = rng.permutation(m)
    positive, negative = np.zeros((2, m), bool)
    positive[order[:n_positive]] = True
    negative[order[n_positive : n_positive + n_negative]] = True
    return jnp.asarray(positive), jnp.asarray(negative)


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "want"),
    [
        (20, 20, (4, 12)),  # floor(16 * 0.3) = 4
        (4, 36, (4, 12)),
        (1, 30, (1, 15)),
        (0, 40, (0, 16)),
        (10, 3, (4, 3)),  # Negatives run out: slots stay empty.
        (2, 0, (2, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts_members_and_order(rng, n_positive, n_negative, want):
    positive, negative = masks(rng, n_positive, n_negative)
    got = sample_16(jax.random.key(3), positive, negative)
    index, is_positive, valid = map(np.array, got)
    slots = np.arange(16)
    np.testing.assert_array_equal(is_positive, slots < want[0])
    np.testing.assert_array_equal(valid, slots < sum(want))
    assert np.array(positive)[index[is_positive]].all()
    assert np.array(negative)[index[valid & ~is_positive]].all()
    assert len(set(index[valid])) == sum(want)
    np.testing.assert_array_equal(index[~valid], 0)


@pytest.mark.parametrize("m", [0, 1, 5])
def test_fewer_rows_than_slots(rng, m):
    positive, negative = masks(rng, m // 2, m - m // 2, m)
    got = sampling.sample_balanced(
        jax.random.key(0), positive, negative, size=8, positive_fraction=1.0
    )
    assert sorted(np.array(got.index[:m])) == list(range(m))
    np.testing.assert_array_equal(got.valid, np.arange(8) < m)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_extreme_fractions(rng, fraction):
    positive, negative = masks(rng, 20, 20)
    got = sampling.sample_balanced(
        jax.random.key(0), positive, negative, size=10, positive_fraction=fraction
    )
    assert np.sum(got.positive) == 10 * fraction
    assert np.all(got.valid)


def test_rows_are_drawn_uniformly(rng):
    positive, negative = masks(rng, 10, 30)
    run = functools.partial(sampling.sample_balanced, size=12, positive_fraction=0.5)
    keys = jax.random.split(jax.random.key(1), 4000)
    got = jax.jit(jax.vmap(run, in_axes=(0, None, None)))(keys, positive, negative)
    drawn = np.bincount(np.array(got.index).ravel(), minlength=M) / 4000
    # 6 of 10 positives, 6 of 30 negatives; 5 standard errors of a proportion.
    np.testing.assert_allclose(drawn[np.array(positive)], 0.6, atol=0.04)
    np.testing.assert_allclose(drawn[np.array(negative)], 0.2, atol=0.035)
    # Nor does the place within the sample depend on the row.
    first = np.bincount(np.array(got.index)[:, 0], minlength=M) / 4000
    np.testing.assert_allclose(first[np.array(positive)], 0.1, atol=0.025)


def test_vmap_draws_what_one_image_draws(rng):
    positive, negative = map(jnp.stack, zip(*[masks(rng, 9, 25) for _ in range(3)], strict=True))
    keys = jax.random.split(jax.random.key(2), 3)
    batch = jax.jit(jax.vmap(sample_16))(keys, positive, negative)
    for i in range(3):
        single = sample_16(keys[i], positive[i], negative[i])
        jax.tree.map(lambda b, s, i=i: np.testing.assert_array_equal(b[i], s), batch, single)
    assert not np.array_equal(batch.index[0], batch.index[1])


def test_a_row_in_both_masks_is_positive():
    both = jnp.ones(3, bool)
    got = sampling.sample_balanced(jax.random.key(0), both, both, size=6, positive_fraction=0.5)
    np.testing.assert_array_equal(got.valid, got.positive)
    assert np.sum(got.valid) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0, "positive_fraction": 0.5}, "size must be positive. Got 0"),
        ({"size": 4, "positive_fraction": 1.5}, "positive_fraction must be .* Got 1.5"),
    ],
)
def test_rejects(options, message):
    mask = jnp.ones(4, bool)
    with pytest.raises(ValueError, match=message):
        sampling.sample_balanced(jax.random.key(0), mask, ~mask, **options)
