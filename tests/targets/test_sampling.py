import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.losses import classification
from jaxdet.targets import sampling

# Made by make_targets.py: logits and labels of 55 images.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "targets.npz")
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


def hardest_one(losses, among, count):
    """Oracle: one row after the other."""
    chosen = np.zeros(len(losses), bool)
    for _ in range(min(count, among.sum())):
        left = [i for i in range(len(losses)) if among[i] and not chosen[i]]
        chosen[max(left, key=lambda i: (losses[i], -i))] = True
    return chosen


def test_hard_negatives_by_hand(compiled):
    losses = jnp.array([9.0, 1, 5, 3, 8, 2, 3, 3])
    positive = jnp.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    negative = jnp.array([1, 1, 1, 1, 0, 1, 1, 1], bool)  # Row 4 is ignored, row 0 positive.
    got = compiled(functools.partial(sampling.hard_negatives, ratio=2))(losses, positive, negative)
    np.testing.assert_array_equal(np.flatnonzero(got), [2, 3])  # 3 is the first of equals.
    got = compiled(sampling.hard_negatives)(losses, positive, negative)
    np.testing.assert_array_equal(np.flatnonzero(got), [2, 3, 6])


def test_hardest_meets_oracle(rng):
    hardest = jax.jit(functools.partial(sampling.hardest, size=7))
    mine = jax.jit(functools.partial(sampling.hard_negatives, ratio=1.5))
    for _ in range(20):
        losses = rng.integers(0, 6, M).astype(np.float32)
        valid = rng.uniform(size=M) < rng.uniform()
        got = hardest(jnp.asarray(losses), jnp.asarray(valid))
        np.testing.assert_array_equal(got, hardest_one(losses, valid, 7))
        positive, negative = masks(rng, rng.integers(0, 12), rng.integers(0, 25))
        got = mine(jnp.asarray(losses), positive, negative)
        want = hardest_one(losses, np.array(negative), int(1.5 * positive.sum()))
        np.testing.assert_array_equal(got, want)


def test_mining_meets_torchvision():
    logits, labels = jnp.asarray(GOLDEN["logits"]), jnp.asarray(GOLDEN["labels"], jnp.int32)

    def image_loss(logits, labels):
        losses = classification.softmax_cross_entropy(logits, labels)
        chosen = sampling.hard_negatives(losses, labels > 0, labels == 0)
        return classification.weighted_sum(losses, (labels > 0) | chosen)[0]

    got = jax.jit(jax.vmap(image_loss))(logits, labels)
    assert len(got) >= 50 and np.any(~np.any(labels > 0, axis=1))  # Images without objects too.
    np.testing.assert_allclose(got, GOLDEN["mined_loss"], rtol=1e-5)
    # What is chosen is no function of the logits; what they lose is.
    grad = jax.jit(jax.grad(image_loss))(logits[1], labels[1])
    assert np.sum(np.any(np.array(grad) != 0, axis=1)) == 4 * np.sum(labels[1] > 0)


def test_bad_losses_are_the_hardest():
    losses = jnp.array([1.0, jnp.nan, jnp.inf, 7, jnp.nan])
    valid = jnp.array([True, True, True, True, False])
    for size, want in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])):
        got = sampling.hardest(losses, valid, size=size)
        np.testing.assert_array_equal(np.flatnonzero(got), want)


def test_mining_in_nothing():
    none = jnp.zeros(0, bool)
    assert sampling.hard_negatives(jnp.zeros(0), none, none).shape == (0,)
    assert sampling.hardest(jnp.zeros(0), none, size=3).shape == (0,)


def test_mining_rejects():
    losses, mask = jnp.zeros(4), jnp.ones(4, bool)
    with pytest.raises(ValueError, match=r"ratio must not be negative\. Got -1"):
        sampling.hard_negatives(losses, mask, mask, ratio=-1)
    with pytest.raises(ValueError, match=r"size must be positive\. Got 0"):
        sampling.hardest(losses, mask, size=0)


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
