import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxdet.targets import assignment

assign = jax.jit(assignment.assign)
assign_all = jax.jit(jax.vmap(assignment.assign))


def total(cost, index, valid):
    """Sums the cost of pairs, once it is sure that they are pairs."""
    index, valid = np.array(index), np.array(valid)
    assert len(set(index[valid])) == valid.sum()
    assert not index[~valid].any()
    return cost[np.flatnonzero(valid), index[valid]].astype(float).sum()


def least(cost):
    """Oracle: the least sum, over all ways to give each row (or column) another column (or row)."""
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    n, m = cost.shape
    ways = itertools.permutations(range(m), n)
    return min(cost[np.arange(n), list(way)].astype(float).sum() for way in ways)


def test_by_hand(compiled):
    # The cheapest pair of all, (0, 0), is not made: 1 + 9 > 2 + 3.
    cost = jnp.array([[1.0, 2, 8], [3, 9, 7]])
    got = compiled(assignment.assign)(cost, jnp.ones(2, bool), jnp.ones(3, bool))
    np.testing.assert_array_equal(got.index, [1, 0])
    np.testing.assert_array_equal(got.valid, [1, 1])
    got = compiled(assignment.assign)(cost, jnp.ones(2, bool), jnp.array([True, False, True]))
    np.testing.assert_array_equal(got.index, [0, 2])
    got = compiled(assignment.assign)(cost, jnp.array([False, True]), jnp.ones(3, bool))
    np.testing.assert_array_equal(got.index, [0, 0])
    np.testing.assert_array_equal(got.valid, [0, 1])


def test_is_the_best_of_all_ways(rng):
    # Whole costs, so that many ways are equally good, in tables of all shapes up to 6 x 6.
    costs = rng.integers(-4, 5, (100, 6, 6)).astype(np.float32)
    rows, columns = rng.uniform(size=(2, 100, 6)) < rng.uniform(0.2, 1.2, (2, 100, 1))
    got = assign_all(*map(jnp.asarray, (costs, rows, columns)))
    for cost, row, column, index, valid in zip(costs, rows, columns, *got, strict=True):
        assert valid.sum() == min(row.sum(), column.sum())
        assert row[valid].all() and column[index[valid]].all()
        np.testing.assert_allclose(total(cost, index, valid), least(cost[row][:, column]))


@pytest.mark.parametrize("shape", [(25, 60), (60, 25)], ids=str)
def test_meets_scipy(rng, shape):
    costs = (100 + rng.normal(size=(25, *shape))).astype(np.float32)
    rows, columns = (jnp.asarray(rng.uniform(size=(25, size)) < 0.7) for size in shape)
    got = assign_all(jnp.asarray(costs), rows, columns)
    for cost, row, column, index, valid in zip(costs, rows, columns, *got, strict=True):
        inner = cost[np.ix_(np.flatnonzero(row), np.flatnonzero(column))]
        want = inner[optimize.linear_sum_assignment(inner)].astype(float).sum()
        np.testing.assert_allclose(total(cost, index, valid), want, rtol=1e-6)


def test_ways_that_are_not_finite_are_not_taken(rng):
    bad = [np.inf, -np.inf, np.nan]
    for _ in range(30):
        cost = rng.normal(size=(4, 5)).astype(np.float32)
        hole = rng.uniform(size=(4, 5)) < 0.6
        cost[hole] = rng.choice(bad, hole.sum())
        got = assign(jnp.asarray(cost), jnp.ones(4, bool), jnp.ones(5, bool))
        # As many pairs as there can be: to stay without one costs more than all others.
        want = least(np.hstack([np.where(hole, 1e6, cost), np.full((4, 4), 1e4)]))
        missing = 4 - got.valid.sum()
        assert np.isclose(total(cost, *got) + 1e4 * missing, want, rtol=0, atol=1e-3)


def test_no_pair_at_all(compiled):
    run = compiled(assignment.assign)
    cost, some = jnp.ones((2, 3)), jnp.ones(2, bool)
    for got in (
        run(cost, jnp.zeros(2, bool), jnp.ones(3, bool)),
        run(cost, some, jnp.zeros(3, bool)),
        run(jnp.full((2, 3), jnp.nan), some, jnp.ones(3, bool)),
        run(jnp.ones((2, 0)), some, jnp.ones(0, bool)),
    ):
        np.testing.assert_array_equal(got.index, [0, 0])
        assert not np.any(got.valid)
    assert run(jnp.ones((0, 3)), jnp.ones(0, bool), jnp.ones(3, bool)).index.shape == (0,)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 3e38])
def test_costs_of_any_size(scale):
    cost = jnp.array([[0.1, 0.2, 0.8], [-1, 0.9, 1]]) * scale
    got = assign(cost, jnp.ones(2, bool), jnp.ones(3, bool))
    assert np.all(got.valid)
    if scale > 1e-37:  # Smaller ones are no numbers to compare.
        np.testing.assert_array_equal(got.index, [1, 0])


def test_passes_no_gradient():
    def paired(cost):
        got = assignment.assign(cost, jnp.ones(2, bool), jnp.ones(2, bool))
        return jnp.sum(jnp.take_along_axis(cost, got.index[:, None], axis=1))

    grad = jax.jit(jax.grad(paired))(jnp.array([[1.0, 2], [3, 9]]))
    np.testing.assert_array_equal(grad, [[0, 1], [1, 0]])
