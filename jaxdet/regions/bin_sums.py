"""Weighted sums of the cells that bins touch, however many these are.

Shape letters: n boxes, p q rows and columns of bins, t and u cells of a bin along each axis,
counted from the first it touches, c channels, r the features of all cells laid end to end.

    out[n, p, q] = sum over t, u of  y_weights[n, t, p] x_weights[n, u, q] buffer[row of the cell]

Boxes are summed one by one, in as many steps as a box's largest bin has cells. Weights are computed
where they are used, so that nothing is stored but the result. Under `vmap` images take turns: a
batched loop would last as long as the longest, and copy the whole gradient in each step.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from jaxdet.regions.places import Places


class Bins(Protocol):
    """The bins of one box along one axis."""

    @property
    def first(self) -> Int[Array, " p"]:
        """The first cell that each bin touches."""
        ...

    @property
    def n_cells(self) -> Int[Array, ""]:
        """How many cells a bin touches, at most."""
        ...

    def weights(self, t: Int[Array, ""]) -> Float[Array, " p"]:
        """Returns the weight of cell number t of each bin; 0 past the end of the map."""
        ...


class Grid(NamedTuple):
    """What is the same for all boxes."""

    size: tuple[int, int]  # Rows and columns of bins.
    bins: Callable[..., Bins]  # Of (start, side, limit, number of bins), a box on an axis.
    n_maps: int = 1  # Rows of the buffer that a cell has; bin number i reads row i modulo this.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def bin_sums(grid: Grid, buffer: Float[Array, "r c"], places: Places) -> Float[Array, "n p q c"]:
    """Returns the sums, float32 and then in the dtype of `buffer`."""

    @sequential_vmap
    def image(buffer, places):
        return lax.map(lambda place: box(buffer, place), places)

    def box(buffer, place):
        y, x = _axes(grid, place)

        def add(total, rows, t, u):
            weights = y.weights(t)[:, None] * x.weights(u)[None, :]
            return total + weights[..., None] * buffer.at[rows].get(mode="promise_in_bounds")

        return _fold(add, jnp.zeros((*grid.size, buffer.shape[1]), jnp.float32), grid, place)

    return image(buffer, places).astype(buffer.dtype)


def _axes(grid, place):
    """Returns the bins of a box along y and along x."""
    return [grid.bins(*(x[axis] for x in place[:3]), grid.size[axis]) for axis in (0, 1)]


def _fold(visit, total, grid, place):
    """Returns total after total = visit(total, rows of the buffer, t, u) for all cells of a box."""
    y, x = _axes(grid, place)
    height, width = place.limits
    n_columns = x.n_cells
    number = np.arange(grid.size[0] * grid.size[1], dtype=np.int32).reshape(grid.size)

    def step(i, total):
        t, u = i // n_columns, i % n_columns
        # Bins with fewer cells than others stay on the map, with weight 0.
        row = jnp.minimum(y.first + t, height - 1)
        column = jnp.minimum(x.first + u, width - 1)
        cell = place.offsets + row[:, None] * width + column[None, :]
        return visit(total, cell * grid.n_maps + number % grid.n_maps, t, u)

    return lax.fori_loop(0, y.n_cells * n_columns, step, total)


def _forward(grid, buffer, places):
    return bin_sums(grid, buffer, places), (buffer, places)


def _backward(grid, residuals, cotangent):
    # Two loops, so that XLA drops the one whose result nobody asks for.
    buffer, places = residuals
    cotangent = cotangent.astype(jnp.float32)
    slopes = _places_cotangent(grid, buffer, places, cotangent).astype(places.starts.dtype)
    return (
        _buffer_cotangent(grid, places, cotangent, buffer.shape[0]).astype(buffer.dtype),
        places._replace(starts=slopes[..., 0], sides=slopes[..., 1], limits=None, offsets=None),
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _buffer_cotangent(grid, places, cotangent, n_rows):
    """Adds each bin's cotangent to the cells it read, in a buffer that XLA updates in place."""

    @sequential_vmap
    def image(places, cotangent):
        total = jnp.zeros((n_rows, cotangent.shape[-1]), jnp.float32)
        return lax.scan(box, total, (places, cotangent))[0]

    def box(total, arrays):
        place, cotangent = arrays
        y, x = _axes(grid, place)

        def add(total, rows, t, u):
            weights = y.weights(t)[:, None] * x.weights(u)[None, :]
            return total.at[rows].add(weights[..., None] * cotangent, mode="promise_in_bounds")

        return _fold(add, total, grid, place), None

    return image(places, cotangent)


@functools.partial(jax.jit, static_argnums=0)
def _places_cotangent(grid, buffer, places, cotangent):
    """Returns the cotangents of (start, side) on both axes; the features are gathered again."""

    @sequential_vmap
    def image(buffer, places, cotangent):
        return lax.map(lambda arrays: box(buffer, *arrays), (places, cotangent))

    def box(buffer, place, cotangent):
        y, x = _axes(grid, place)

        def add(total, rows, t, u):
            values = buffer.at[rows].get(mode="promise_in_bounds")
            slope = jnp.sum(cotangent * values, axis=-1)
            by_y = jnp.sum(slope * x.weights(u)[None, :], axis=1)
            by_x = jnp.sum(slope * y.weights(t)[:, None], axis=0)
            return total + jnp.stack([along(0, t, by_y), along(1, u, by_x)])

        def along(axis, t, cotangent):
            def weights(start, side):
                return grid.bins(start, side, place.limits[axis], grid.size[axis]).weights(t)

            slopes = jax.jacfwd(weights, argnums=(0, 1))(place.starts[axis], place.sides[axis])
            return jnp.stack([jnp.sum(cotangent * slope) for slope in slopes])

        return _fold(add, jnp.zeros((2, 2), jnp.float32), grid, place)

    return image(buffer, places, cotangent)


bin_sums.defvjp(_forward, _backward)
