import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.regions.bin_sums import Grid, bin_sums
from jaxdet.regions.places import Places

HEIGHT, WIDTH = 5, 6


class Wedges(NamedTuple):
    """Bin i of a box starts at cell start + i; the weight of cell t is (t + 1) side + start."""

    start: jax.Array
    side: jax.Array
    first: jax.Array
    limit: jax.Array

    @property
    def n_cells(self):
        return jnp.ceil(self.side).astype(jnp.int32)

    def weights(self, t):
        weight = (t + 1) * self.side + self.start
        return jnp.where(self.first + t < self.limit, weight, 0)


def wedges(start, side, limit, n):
    first = jnp.floor(start).astype(jnp.int32) + jnp.arange(n)
    return Wedges(start, side, first, limit)


def sum_one(buffer, start, side, size, n_maps):
    """Oracle: one box on a map at the head of the buffer, cell by cell."""
    cells = np.array(buffer, np.float64).reshape(HEIGHT, WIDTH, n_maps, -1)
    out = np.zeros((*size, cells.shape[-1]))
    for p, q, t, u in np.ndindex(*size, *np.ceil(side).astype(int)):
        row, column = int(start[0]) + p + t, int(start[1]) + q + u
        if row < HEIGHT and column < WIDTH:
            weight = ((t + 1) * side[0] + start[0]) * ((u + 1) * side[1] + start[1])
            out[p, q] += weight * cells[row, column, (p * size[1] + q) % n_maps]
    return out


def random_inputs(rng, n, n_maps=1):
    buffer = jnp.asarray(rng.normal(size=(HEIGHT * WIDTH * n_maps, 3)), jnp.float32)
    starts = jnp.asarray(rng.integers(0, 3, (n, 2)) + rng.uniform(0.2, 0.8, (n, 2)), jnp.float32)
    sides = jnp.asarray(rng.integers(0, 3, (n, 2)) + rng.uniform(0.2, 0.8, (n, 2)), jnp.float32)
    limits = jnp.tile(jnp.array([[HEIGHT, WIDTH]]), (n, 1))
    return buffer, Places(starts, sides, limits, jnp.zeros(n, jnp.int32))


@pytest.mark.parametrize(("size", "n_maps"), [((2, 3), 1), ((2, 3), 6), ((1, 1), 1)], ids=str)
def test_meets_oracle(rng, size, n_maps):
    buffer, where = random_inputs(rng, 8, n_maps)
    got = bin_sums(Grid(size, wedges, n_maps), buffer, where)
    boxes = zip(np.array(where.starts), np.array(where.sides), strict=True)
    want = [sum_one(buffer, start, side, size, n_maps) for start, side in boxes]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_reads_from_its_offset(rng):
    buffer, where = random_inputs(rng, 4)
    grid = Grid((2, 2), wedges)
    moved = jnp.concatenate([jnp.full((7, 3), 99.0), buffer])
    got = bin_sums(grid, moved, where._replace(offsets=where.offsets + 7))
    np.testing.assert_array_equal(got, bin_sums(grid, buffer, where))


def test_gradient_of_the_buffer_is_the_transpose(rng):
    buffer, where = random_inputs(rng, 8)
    grid = Grid((2, 3), wedges)
    out, pull = jax.vjp(lambda buffer: bin_sums(grid, buffer, where), buffer)
    cotangent = rng.normal(size=out.shape).astype(np.float32)
    want = (out * cotangent).sum()
    np.testing.assert_allclose((pull(jnp.asarray(cotangent))[0] * buffer).sum(), want, rtol=1e-4)
    # One cell's gradient by a finite difference, exact up to rounding because the sum is linear.
    step = jnp.zeros_like(buffer).at[15, 1].set(1.0)
    want = ((bin_sums(grid, buffer + step, where) - out) * cotangent).sum()
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0][15, 1], want, rtol=1e-3)


def test_gradient_of_places_by_finite_differences(rng):
    buffer, where = random_inputs(rng, 5)
    cotangent = rng.normal(size=(5, 2, 3, 3))

    def total(starts, sides):
        out = bin_sums(Grid((2, 3), wedges), buffer, where._replace(starts=starts, sides=sides))
        return (out * jnp.asarray(cotangent, jnp.float32)).sum()

    got = jax.jit(jax.grad(total, argnums=(0, 1)))(where.starts, where.sides)
    box = [np.array(x, np.float64) for x in (where.starts, where.sides)]
    for k, n, axis in np.ndindex(2, 5, 2):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [x[n].copy() for x in box]
            moved[k][axis] += step
            ends.append((sum_one(buffer, *moved, (2, 3), 1) * cotangent[n]).sum())
        want = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(got[k][n, axis], want, rtol=1e-3, atol=1e-3)


def test_vmap_and_its_gradient_are_the_images_one_by_one(rng):
    buffers, where = jax.tree.map(
        lambda *x: jnp.stack(x), *[random_inputs(rng, 4) for _ in range(3)]
    )

    def total(buffer, starts, where):
        out = bin_sums(Grid((2, 2), wedges), buffer, where._replace(starts=starts))
        return (out**2).sum(), out

    grad = jax.grad(total, argnums=(0, 1), has_aux=True)
    got = jax.jit(jax.vmap(grad))(buffers, where.starts, where)
    want = jax.lax.map(lambda x: grad(*x), (buffers, where.starts, where))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)
    # The features of one image, boxes of several.
    got = jax.vmap(grad, in_axes=(None, 0, 0))(buffers[0], where.starts, where)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[0], y[0], rtol=1e-5, atol=1e-5), got, want
    )


def test_images_take_turns_under_vmap(rng):
    buffers, where = jax.tree.map(
        lambda *x: jnp.stack(x), *[random_inputs(rng, 4) for _ in range(3)]
    )

    def total(buffer, starts, where):
        return bin_sums(Grid((2, 2), wedges), buffer, where._replace(starts=starts)).sum()

    grad = jax.vmap(jax.grad(total, argnums=(0, 1)))
    program = str(jax.make_jaxpr(grad)(buffers, where.starts, where))
    # A batched loop would ask each of the three whether it goes on.
    assert "while[" in program and "bool[3]" not in program


@pytest.mark.parametrize("n_images", [1, 3])
def test_memory_does_not_grow_with_the_cells_of_bins(n_images):
    n, size, c = 200, (7, 7), 16
    buffer = jnp.zeros((n_images, 40 * 40, c))
    places = Places(jnp.zeros((n, 2)), jnp.ones((n, 2)), jnp.full((n, 2), 40), jnp.zeros(n, int))

    def total(buffers, starts):
        where = places._replace(starts=starts)
        out = jax.vmap(lambda buffer: bin_sums(Grid(size, wedges), buffer, where))(buffers)
        return (out**2).sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(buffer, places.starts).compile()
    output_bytes = n_images * n * 7 * 7 * c * 4
    assert program.memory_analysis().temp_size_in_bytes < 3 * output_bytes


def test_no_boxes(rng):
    buffer, where = random_inputs(rng, 0)
    out, pull = jax.vjp(lambda buffer: bin_sums(Grid((2, 2), wedges), buffer, where), buffer)
    assert out.shape == (0, 2, 2, 3)
    assert not pull(out)[0].any()
