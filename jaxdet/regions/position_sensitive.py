"""Position-sensitive RoIAlign and RoIPool: each bin reads maps of its own.

Shape letters: n boxes, h w d the feature map, p q output rows and columns, k output channels,
d = k p q.

What output channel i reads in the bin at (row, column) is channel (i p + row) q + column.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdet.regions import adaptive_roi_align, bin_sums, places, roi_align, roi_pool


def ps_roi_align(
    features: Float[Array, "h w d"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
) -> Float[Array, "n p q k"]:
    """Returns the mean of bilinear samples in each bin, of the channels for that bin.

    Args:
      features: One image's feature map, channels as at the head of this module; the value of a cell
        stands at its centre.
      boxes: xyxy, in pixels of the image.
      output_size: Bins, one number or (rows, columns).
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.
      sampling_ratio: Samples of a bin along each axis, at least 1.

    Returns:
      Features as from `jaxdet.regions.roi_align.roi_align` with `aligned=True`; differentiable in
      features and boxes, in reverse mode.

    Source:
      R-FCN (Dai et al. 2016, arXiv:1605.06409v2), section 2, for the maps; Mask R-CNN (He et al.
      2017, arXiv:1703.06870v3), section 3, for the samples.
    """
    size = places.bins_of(output_size)
    where = _locate(features, boxes, spatial_scale=spatial_scale, aligned=True)
    rows, columns, *weights = roi_align.taps(where, size, sampling_ratio=sampling_ratio)
    maps = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    rows = rows * maps.size + maps[None, :, :1]
    columns = columns * maps.size + maps[None, 0, :, None]
    return roi_align.weighted_sum(_buffer(features, size), rows, columns, *weights)


def adaptive_ps_roi_align(
    features: Float[Array, "h w d"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "n p q k"]:
    """Returns `ps_roi_align` with ceil(side of a bin in cells) samples along each axis.

    Args:
      features: As in `ps_roi_align`.
      boxes: xyxy, in pixels of the image.
      output_size: Bins, one number or (rows, columns).
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.

    Returns:
      As `ps_roi_align`. Numbers of samples count as constants in the gradient.

    Source:
      As `ps_roi_align`; the number of samples is that of torchvision's operator with
      sampling_ratio 0.

    Departures:
      0 for boxes without area, where torchvision's operator gives NaN.
    """
    size = places.bins_of(output_size)
    where = _locate(features, boxes, spatial_scale=spatial_scale, aligned=True)
    grid = bin_sums.Grid(size, adaptive_roi_align.adaptive_bins, n_maps=size[0] * size[1])
    return bin_sums.bin_sums(grid, _buffer(features, size), where)


def ps_roi_pool(
    features: Float[Array, "h w d"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "n p q k"]:
    """Returns the mean of the cells in each bin, of the channels for that bin.

    Args:
      features: One image's feature map, channels as at the head of this module.
      boxes: xyxy, in pixels of the image; corners are rounded to cells.
      output_size: Bins, one number or (rows, columns).
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.

    Returns:
      Features; 0 in bins without cells on the map. No gradient goes to the boxes. Reverse mode
      only.

    Source:
      R-FCN (Dai et al. 2016, arXiv:1605.06409v2), section 2, eq. 1.

    Departures:
      As in torchvision, halves are rounded away from zero, boxes are at least one cell, and bins
      end before the last row and column of the map, which are never read. There, torchvision's
      gradient counts them all the same; here it is that of the values.
    """
    size = places.bins_of(output_size)
    corners = roi_pool.round_corners(boxes, spatial_scale=spatial_scale)
    where = _locate(features, corners, spatial_scale=1.0, aligned=False)
    grid = bin_sums.Grid(size, _whole_cells, n_maps=size[0] * size[1])
    return bin_sums.bin_sums(grid, _buffer(features, size), where)


def _locate(features, boxes, *, spatial_scale, aligned) -> places.Places:
    levels = jnp.zeros(boxes.shape[0], jnp.int32)
    return places.locate(
        (features,), boxes, levels, spatial_scales=(spatial_scale,), aligned=aligned
    )


def _buffer(features: Float[Array, "h w d"], size: tuple[int, int]) -> Float[Array, "r k"]:
    """Returns the maps as rows: cell by cell, and for each cell bin by bin."""
    n_maps = size[0] * size[1]
    if features.shape[-1] % n_maps:
        raise ValueError(f"features need a multiple of {n_maps} channels. Got {features.shape[-1]}")
    k = features.shape[-1] // n_maps
    return jnp.swapaxes(features.reshape(-1, k, n_maps), 1, 2).reshape(-1, k)


class _WholeCells(NamedTuple):
    """Bins of whole cells, see `bin_sums.Bins`."""

    first: Int[Array, " p"]
    stop: Int[Array, " p"]

    @property
    def n_cells(self) -> Int[Array, ""]:
        return jnp.maximum(jnp.max(self.stop - self.first), 0)

    def weights(self, t: Int[Array, ""]) -> Float[Array, " p"]:
        inside = self.first + t < self.stop
        return jnp.where(inside, 1 / jnp.maximum(self.stop - self.first, 1), 0)


def _whole_cells(
    start: Float[Array, ""], side: Float[Array, ""], limit: Int[Array, ""], n: int
) -> _WholeCells:
    first, stop = jnp.moveaxis(roi_pool.bin_edges(start, side, n, limit - 1), -1, 0)
    return _WholeCells(first, stop)
