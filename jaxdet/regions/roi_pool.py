"""RoI max pooling: features of fixed size for boxes, by the maximum of each bin's cells.

Shape letters: n boxes, h w c the feature map, p q output rows and columns.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def roi_pool(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "n p q c"]:
    """Returns the maximum of each bin of a grid over each box, corners rounded to cells.

    Args:
      features: One image's feature map.
      boxes: xyxy, in pixels of the image.
      output_size: Bins, one number or (rows, columns).
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.

    Returns:
      Features; 0 in bins outside the map. The gradient goes to the maximum, in equal parts where
      several cells share it. None goes to the boxes.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), section 2.1.

    Departures:
      Rounding (half away from zero, both corner cells included, bins overlap) is that of the
      published code and torchvision, which give a shared maximum's gradient to its first cell.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    if min(size) < 1:
        raise ValueError(f"output_size must be at least 1. Got {output_size}")
    if spatial_scale <= 0:
        raise ValueError(f"spatial_scale must be positive. Got {spatial_scale}")
    corners = lax.round(boxes * spatial_scale, lax.RoundingMethod.AWAY_FROM_ZERO)
    in_row = _bins(corners[:, 1], corners[:, 3], size[0], features.shape[0])
    in_column = _bins(corners[:, 0], corners[:, 2], size[1], features.shape[1])
    # One box at a time: all boxes' copies of the map would take gigabytes.
    return lax.map(lambda bins: _pool(features, *bins), (in_row, in_column))


def _bins(
    low: Float[Array, " n"], high: Float[Array, " n"], n_bins: int, limit: int
) -> Bool[Array, "n p h"]:
    """Returns which cells of an axis each bin holds."""
    bin_side = (jnp.maximum(high - low + 1, 1) / n_bins)[:, None]
    bins = jnp.arange(n_bins, dtype=low.dtype)[None]
    start = jnp.floor(bins * bin_side) + low[:, None]
    stop = jnp.ceil((bins + 1) * bin_side) + low[:, None]
    cells = jnp.arange(limit, dtype=low.dtype)[None, None]
    return (cells >= start[..., None]) & (cells < stop[..., None])


@jax.checkpoint
def _pool(
    features: Float[Array, "h w c"], in_row: Bool[Array, "p h"], in_column: Bool[Array, "q w"]
) -> Float[Array, "p q c"]:
    """Returns one box's maxima: over rows first, then over columns."""
    rows = jnp.max(jnp.where(in_row[:, :, None, None], features[None], -jnp.inf), axis=1)
    bins = jnp.max(jnp.where(in_column[None, :, :, None], rows[:, None], -jnp.inf), axis=2)
    filled = in_row.any(1)[:, None, None] & in_column.any(1)[None, :, None]
    return jnp.where(filled, bins, 0)
