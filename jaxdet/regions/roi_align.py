"""RoIAlign: features of fixed size for boxes, by bilinear sampling.

Shape letters: n boxes, h w c the feature map, p q output rows and columns, t and u the taps that an
output row and column read (low and high neighbour of each of its samples), r the rows of all
levels' features laid end to end, k boxes of a chunk.

Bilinear sampling is separable, so all samples of a box are one weighted sum:

    out[n, p, q] = sum over t, u of  y_weights[n, p, t] x_weights[n, q, u] buffer[y_rows + x_rows]

Only the weights depend on the box smoothly; they are differentiated by JAX, the sum by hand.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdet.geometry import rounding
from jaxdet.regions import places

# Boxes whose gradients are computed together: few enough for the samples of a vmapped batch to stay
# in a CPU's cache. All at once takes gigabytes and four times as long.
CHUNK = 4


@jax.named_scope("roi_align")
def roi_align(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Float[Array, "n p q c"]:
    """Returns the mean of bilinear samples in each bin of a grid over each box.

    Args:
      features: One image's feature map; the value of a cell stands at its index.
      boxes: xyxy, in pixels of the image.
      output_size: Bins, one number or (rows, columns).
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.
      sampling_ratio: Samples of a bin along each axis, at least 1.
      aligned: True shifts by half a cell, so that cells' values stand at their centres, and lets
        boxes be smaller than a cell. False is the first published form, which grows them to a cell.

    Returns:
      Features in the dtype of `features`. Samples more than a cell outside the map count as 0.
      Differentiable in features and boxes, in reverse mode.

    Source:
      Mask R-CNN (He et al. 2017, arXiv:1703.06870v3), section 3, "RoIAlign".

    Departures:
      Borders and `aligned` follow torchvision's operator, which has no gradient for boxes.
    """
    return pyramid_roi_align(
        (features,),
        boxes,
        jnp.zeros(boxes.shape[0], jnp.int32),
        spatial_scales=(spatial_scale,),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


@jax.named_scope("roi_align")
def pyramid_roi_align(
    pyramid: tuple[Float[Array, "_ _ c"], ...],
    boxes: Float[Array, "n 4"],
    levels: Int[Array, " n"],
    *,
    spatial_scales: tuple[float, ...],
    output_size: int | tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Float[Array, "n p q c"]:
    """Returns `roi_align` of each box on its own level of a feature pyramid.

    A box costs the same as on a single map: the other levels are not sampled.

    Args:
      pyramid: One image's feature maps.
      boxes: xyxy, in pixels of the image.
      levels: The index in `pyramid` that a box reads; cut to those there are.
      spatial_scales: Cells of each map for each pixel of the image, 1 / stride.
      output_size: Bins, one number or (rows, columns).
      sampling_ratio: Samples of a bin along each axis, at least 1.
      aligned: As in `roi_align`.

    Returns:
      As `roi_align`.

    Source:
      Feature Pyramid Networks (Lin et al. 2017, arXiv:1612.03144v2), section 4.2.
    """
    size = places.bins_of(output_size)
    where = places.locate(pyramid, boxes, levels, spatial_scales=spatial_scales, aligned=aligned)
    buffer = jnp.concatenate([level.reshape(-1, level.shape[-1]) for level in pyramid])
    return weighted_sum(buffer, *taps(where, size, sampling_ratio=sampling_ratio))


def taps(
    where: places.Places, size: tuple[int, int], *, sampling_ratio: int
) -> tuple[Int[Array, "n p t"], Int[Array, "n q u"], Float[Array, "n p t"], Float[Array, "n q u"]]:
    """Returns the arguments of `weighted_sum` after the first: what each bin reads.

    Weights of a bin sum to 1 along each axis, but for samples outside the map.
    """
    if sampling_ratio < 1:
        raise ValueError(f"sampling_ratio must be at least 1. Got {sampling_ratio}")
    rows, y_weights = _taps(where, 0, size[0], sampling_ratio)
    columns, x_weights = _taps(where, 1, size[1], sampling_ratio)
    rows = rows * where.limits[:, 1, None, None] + where.offsets[:, None, None]
    return rows, columns, y_weights, x_weights


@functools.partial(jax.jit, static_argnames=("axis", "n_bins", "n_samples"))
def _taps(
    where: places.Places, axis: int, n_bins: int, n_samples: int
) -> tuple[Int[Array, "n p t"], Float[Array, "n p t"]]:
    """Returns the cells that each bin of an axis reads, and their weights."""
    start, side, limit = (x[:, axis, None, None] for x in where[:3])
    bins = jnp.arange(n_bins, dtype=start.dtype)[None, :, None]
    samples = jnp.arange(n_samples, dtype=start.dtype)[None, None, :] + 0.5
    bin_side = rounding.divide(side, n_bins)
    position = start + rounding.rounded(bins * bin_side)
    position = position + rounding.divide(samples * bin_side, n_samples)
    low, weights = neighbours(position, limit)
    cells = jnp.stack([low, jnp.minimum(low + 1, limit - 1)], axis=-1)
    shape = (*low.shape[:2], 2 * n_samples)
    return cells.reshape(shape), (weights / n_samples).reshape(shape)


def neighbours(
    position: Float[Array, "*b"], limit: Int[Array, "*#b"]
) -> tuple[Int[Array, "*b"], Float[Array, "*b 2"]]:
    """Returns the cell at or below a position, and the weights of it and the next; 0 outside."""
    inside = (position >= -1) & (position <= limit)
    position = jnp.clip(jnp.where(inside, position, 0), 0, (limit - 1).astype(position.dtype))
    low = jnp.floor(position)
    fraction = position - low
    weights = jnp.where(inside[..., None], jnp.stack([1 - fraction, fraction], axis=-1), 0)
    return low.astype(jnp.int32), weights


@jax.custom_vjp
@jax.jit
def weighted_sum(
    buffer: Float[Array, "r c"],
    rows: Int[Array, "n p t"],
    columns: Int[Array, "n q u"],
    y_weights: Float[Array, "n p t"],
    x_weights: Float[Array, "n q u"],
) -> Float[Array, "n p q c"]:
    """Sums taps one by one, so that XLA fuses all gathers and nothing large is stored."""
    total = jnp.zeros((), jnp.float32)
    for t, u in itertools.product(range(rows.shape[-1]), range(columns.shape[-1])):
        weights = y_weights[:, :, None, t] * x_weights[:, None, :, u]
        cells = rows[:, :, None, t] + columns[:, None, :, u]
        total = total + weights[..., None] * buffer.at[cells].get(mode="promise_in_bounds")
    return total.astype(buffer.dtype)


def _cells(rows: Int[Array, "k p t"], columns: Int[Array, "k q u"]) -> Int[Array, "k p q t u"]:
    return rows[:, :, None, :, None] + columns[:, None, :, None, :]


def _forward(*args):
    return weighted_sum(*args), args


def _backward(residuals, cotangent):
    # Two loops, so that XLA drops the one whose result nobody asks for.
    buffer, *taps = residuals
    cotangent = cotangent.astype(jnp.float32)
    y_cotangent, x_cotangent = _weights_cotangent(buffer, cotangent, *taps)
    return _buffer_cotangent(buffer, cotangent, *taps), None, None, y_cotangent, x_cotangent


@jax.jit
def _buffer_cotangent(buffer, cotangent, rows, columns, y_weights, x_weights):
    """Adds each bin's cotangent to the cells it read, in a buffer that XLA updates in place."""

    def add(total, chunk):
        cotangent, rows, columns, y_weights, x_weights = chunk
        weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
        update = cotangent[:, :, :, None, None] * weights[..., None]
        return total.at[_cells(rows, columns)].add(update, mode="promise_in_bounds"), None

    chunks = _chunks(cotangent, rows, columns, y_weights, x_weights)
    total, _ = lax.scan(add, jnp.zeros(buffer.shape, jnp.float32), chunks)
    return total.astype(buffer.dtype)


@jax.jit
def _weights_cotangent(buffer, cotangent, rows, columns, y_weights, x_weights):
    """Returns the cotangents of both axes' weights; the features are gathered again."""

    def products(chunk):
        cotangent, rows, columns, y_weights, x_weights = chunk
        values = buffer.at[_cells(rows, columns)].get(mode="promise_in_bounds")
        slope = jnp.einsum("kpqc,kpqtuc->kpqtu", cotangent, values, precision=lax.Precision.HIGHEST)
        by_y = jnp.einsum("kpqtu,kqu->kpt", slope, x_weights, precision=lax.Precision.HIGHEST)
        by_x = jnp.einsum("kpqtu,kpt->kqu", slope, y_weights, precision=lax.Precision.HIGHEST)
        return by_y, by_x

    n = rows.shape[0]
    by_y, by_x = lax.map(products, _chunks(cotangent, rows, columns, y_weights, x_weights))
    return by_y.reshape(-1, *by_y.shape[2:])[:n], by_x.reshape(-1, *by_x.shape[2:])[:n]


def _chunks(*arrays):
    """Cuts the boxes' axis in chunks, filled up with zeros, which add nothing."""

    def cut(array):
        padding = [(0, -array.shape[0] % CHUNK)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(-1, CHUNK, *array.shape[1:])

    return tuple(cut(array) for array in arrays)


weighted_sum.defvjp(_forward, _backward)
