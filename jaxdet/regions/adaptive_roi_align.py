"""RoIAlign with as many samples in a bin as it has cells.

Shape letters: n boxes, h w c a feature map, p q output rows and columns.

Bilinear sampling is separable, so a bin is a weighted sum of the cells that it touches. On one axis
the weight of a cell in a bin is

    mean over the samples s of  max(0, 1 - |position(s) - cell|)

of which few samples are near enough to count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdet.geometry import rounding
from jaxdet.regions import bin_sums, places, roi_align

# Two samples of a bin are more than half a cell apart, so that at most four lie within a cell of a
# given one; the search begins one before them.
NEAR = 5


def adaptive_roi_align(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    aligned: bool = False,
) -> Float[Array, "n p q c"]:
    """Returns `roi_align` with ceil(side of a bin in cells) samples along each axis.

    Work grows with the boxes' areas on the map.

    Args:
      features: One image's feature map; the value of a cell stands at its index.
      boxes: xyxy, in pixels of the image.
      output_size: Bins, one number or (rows, columns).
      spatial_scale: Cells of the map for each pixel of the image, 1 / stride.
      aligned: As in `roi_align`.

    Returns:
      As `roi_align`; 0 for aligned boxes without area. Numbers of samples count as constants in
      the gradient.

    Source:
      Mask R-CNN (He et al. 2017, arXiv:1703.06870v3), section 3, "RoIAlign"; the number of samples
      is that of torchvision's operator with sampling_ratio 0, and Detectron2's.
    """
    return adaptive_pyramid_roi_align(
        (features,),
        boxes,
        jnp.zeros(boxes.shape[0], jnp.int32),
        spatial_scales=(spatial_scale,),
        output_size=output_size,
        aligned=aligned,
    )


def adaptive_pyramid_roi_align(
    pyramid: tuple[Float[Array, "_ _ c"], ...],
    boxes: Float[Array, "n 4"],
    levels: Int[Array, " n"],
    *,
    spatial_scales: tuple[float, ...],
    output_size: int | tuple[int, int],
    aligned: bool = False,
) -> Float[Array, "n p q c"]:
    """Returns `adaptive_roi_align` of each box on its own level of a feature pyramid.

    Args:
      pyramid: One image's feature maps.
      boxes: xyxy, in pixels of the image.
      levels: The index in `pyramid` that a box reads; cut to those there are.
      spatial_scales: Cells of each map for each pixel of the image, 1 / stride.
      output_size: Bins, one number or (rows, columns).
      aligned: As in `roi_align`.

    Returns:
      As `adaptive_roi_align`.

    Source:
      Feature Pyramid Networks (Lin et al. 2017, arXiv:1612.03144v2), section 4.2.
    """
    grid = bin_sums.Grid(places.bins_of(output_size), adaptive_bins)
    where = places.locate(pyramid, boxes, levels, spatial_scales=spatial_scales, aligned=aligned)
    buffer = jnp.concatenate([level.reshape(-1, level.shape[-1]) for level in pyramid])
    return bin_sums.bin_sums(grid, buffer, where)


class _SampledBins(NamedTuple):
    """Bins with samples, see `bin_sums.Bins`."""

    starts: Float[Array, " p"]  # Cells.
    side: Float[Array, ""]  # Cells.
    n_samples: Float[Array, ""]
    limit: Int[Array, ""]  # Cells of the map.

    @property
    def first(self) -> Int[Array, " p"]:
        return self.cell(0)

    @property
    def n_cells(self) -> Int[Array, ""]:
        n_cells = jnp.max(self.cell(self.n_samples - 1) - self.first) + 2
        return jnp.where(self.n_samples > 0, jnp.minimum(n_cells, self.limit), 0)

    def weights(self, t: Int[Array, ""]) -> Float[Array, " p"]:
        """Returns the mean over the samples of the weights of cell number t."""
        cell, n_samples = self.first + t, jnp.maximum(self.n_samples, 1)
        spacing = jnp.where(self.side > 0, self.side / n_samples, 1)
        before = jnp.floor((cell - 1 - self.starts) / spacing - 0.5)
        before = lax.stop_gradient(jnp.clip(before, 0, n_samples - 1))

        def of_sample(k):
            low, pair = roi_align.neighbours(self.position(before + k), self.limit)
            weight = jnp.where(low == cell, pair[:, 0], jnp.where(low + 1 == cell, pair[:, 1], 0))
            return jnp.where(before + k < self.n_samples, weight, 0)

        return jnp.sum(jax.vmap(of_sample)(jnp.arange(NEAR)), axis=0) / n_samples

    def position(self, sample) -> Float[Array, " p"]:
        """Returns where a sample of each bin lies."""
        step = rounding.divide((sample + 0.5) * self.side, jnp.maximum(self.n_samples, 1))
        return self.starts + step

    def cell(self, sample) -> Int[Array, " p"]:
        """Returns the cell at or below a sample, on the map."""
        return jnp.clip(self.position(sample), 0, self.limit - 1).astype(jnp.int32)


def adaptive_bins(
    start: Float[Array, ""], side: Float[Array, ""], limit: Int[Array, ""], n: int
) -> _SampledBins:
    """Returns the bins of one box along one axis, for `bin_sums.Grid`."""
    usable = jnp.isfinite(start) & (side > 0) & (side < jnp.inf)
    start, side = jnp.where(usable, start, 0), jnp.where(usable, side, 0)
    side = rounding.divide(side, n)
    starts = start + rounding.rounded(jnp.arange(n, dtype=side.dtype) * side)
    return _SampledBins(starts, side, lax.stop_gradient(jnp.ceil(side)), limit)
