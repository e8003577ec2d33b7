"""RoI max pooling: features of fixed size for boxes, by the maximum of each bin's cells.

Shape letters: n boxes, h w c the feature map, p q output rows and columns. A bin's cells along an
axis are first, first + 1, ..., stop - 1; it is empty if stop <= first.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdet.geometry import rounding
from jaxdet.regions import places

# Corners beyond this many cells are cut, so that they are integers of 32 bits and of float32.
FAR = 1 << 20


@jax.named_scope("roi_pool")
def roi_pool(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "n p q c"]:
    """Returns the maximum of each bin of a grid over each box, corners rounded to cells.

    Work grows with the boxes' areas on the map.

    Args:
      features: One image's feature map.
      boxes: xyxy, in pixels of the image.
      output_size: Bins, one number or (rows, columns), at least 1.
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.

    Returns:
      Features; 0 in bins without cells on the map. The gradient goes to the maximum, where it is
      shared to the first in reading order; none goes to the boxes. Reverse mode only.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), section 2.1.

    Departures:
      Rounding is that of the published code and torchvision: half away from zero, both corner
      cells included, bins overlap; edges of bins are computed in float32, which makes a bin of a
      few sides (57 cells in 7 bins) one cell too long.
    """
    size = places.bins_of(output_size)
    corners = round_corners(boxes, spatial_scale=spatial_scale)
    low, side = corners[:, :2], corners[:, 2:] - corners[:, :2] + 1
    rows = _bins(low[:, 1], side[:, 1], size[0], features.shape[0])
    columns = _bins(low[:, 0], side[:, 0], size[1], features.shape[1])
    return _maxima(features, rows, columns)


def round_corners(boxes: Float[Array, "n 4"], *, spatial_scale: float) -> Float[Array, "n 4"]:
    """Returns corners in cells, rounded to whole ones, halves away from zero."""
    if spatial_scale <= 0:
        raise ValueError(f"spatial_scale must be positive. Got {spatial_scale}")
    corners = lax.round(rounding.rounded(boxes * spatial_scale), lax.RoundingMethod.AWAY_FROM_ZERO)
    return jnp.clip(corners, -FAR, FAR)


def bin_edges(
    low: Float[Array, ""], side: Float[Array, ""], n_bins: int, limit: int | Int[Array, ""]
) -> Int[Array, "p 2"]:
    """Returns first and stop of each bin's cells, for a box on an axis, cut to 0 .. limit."""
    bin_side = rounding.divide(jnp.maximum(side, 1), n_bins)
    bins = jnp.arange(n_bins, dtype=low.dtype)
    edges = jnp.stack([jnp.floor(bins * bin_side), jnp.ceil((bins + 1) * bin_side)], axis=-1)
    return jnp.clip(edges + low, 0, limit).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("n_bins", "limit"))
def _bins(
    low: Float[Array, " n"], side: Float[Array, " n"], n_bins: int, limit: int
) -> Int[Array, "n p 2"]:
    return jax.vmap(lambda low, side: bin_edges(low, side, n_bins, limit))(low, side)


@jax.custom_vjp
def _maxima(
    features: Float[Array, "h w c"], rows: Int[Array, "n p 2"], columns: Int[Array, "n q 2"]
) -> Float[Array, "n p q c"]:
    return _forward(features, rows, columns)[0]


@jax.jit
def _forward(features, rows, columns):
    """Returns the maxima and, for the way back, the cells they come from."""
    height, width, n_channels = features.shape
    cells = features.reshape(height * width, n_channels)
    # One box at a time, so that each takes as many steps as its own bins have cells.
    maxima, sources = lax.map(lambda bins: _pool(cells, width, *bins), (rows, columns))
    return maxima, (features, sources)


def _pool(
    cells: Float[Array, "r c"], width: int, rows: Int[Array, "p 2"], columns: Int[Array, "q 2"]
) -> tuple[Float[Array, "p q c"], Int[Array, "p q c"]]:
    """Returns one box's maxima and their rows in `cells` (past the end where there is none)."""
    n_rows, n_columns = (jnp.max(bins[:, 1] - bins[:, 0]) for bins in (rows, columns))

    def visit(step, best):
        # Bins with fewer cells see their last one again, which changes no maximum.
        y = jnp.clip(rows[:, 0] + step // n_columns, 0, jnp.maximum(rows[:, 1] - 1, 0))
        x = jnp.clip(columns[:, 0] + step % n_columns, 0, jnp.maximum(columns[:, 1] - 1, 0))
        source = (y[:, None] * width + x[None, :])[..., None]
        value = cells[source[..., 0]]
        better = value > best[0]
        return jnp.where(better, value, best[0]), jnp.where(better, source, best[1])

    shape = (rows.shape[0], columns.shape[0], cells.shape[1])
    start = (jnp.full(shape, -jnp.inf, cells.dtype), jnp.full(shape, cells.shape[0], jnp.int32))
    n_steps = jnp.maximum(n_rows, 0) * jnp.maximum(n_columns, 0)
    maxima, sources = lax.fori_loop(0, n_steps, visit, start)
    filled = (rows[:, 0] < rows[:, 1])[:, None, None] & (columns[:, 0] < columns[:, 1])[
        None, :, None
    ]
    return jnp.where(filled, maxima, 0), jnp.where(filled, sources, cells.shape[0])


@jax.jit
def _backward(residuals, cotangent):
    features, sources = residuals
    height, width, n_channels = features.shape
    channels = jnp.arange(n_channels)[None, None]

    def add(total, box):
        cotangent, sources = box
        return total.at[sources, channels].add(cotangent, mode="drop"), None

    total = jnp.zeros((height * width, n_channels), jnp.float32)
    total, _ = lax.scan(add, total, (cotangent.astype(jnp.float32), sources))
    return total.reshape(features.shape).astype(features.dtype), None, None


_maxima.defvjp(_forward, _backward)
