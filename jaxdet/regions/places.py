"""Where boxes lie on their feature maps, to the last bit.

Shape letters: n boxes, h w c a feature map.

Places are computed as torchvision's operators do, in float32 with every operation rounded; see
`jaxdet.geometry.rounding`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdet.geometry import rounding


class Places(NamedTuple):
    """Boxes on their maps; the last axis is (y, x)."""

    starts: Float[Array, "n 2"]  # Cells.
    sides: Float[Array, "n 2"]  # Cells.
    limits: Int[Array, "n 2"]  # Height and width of the map, cells.
    offsets: Int[Array, " n"]  # Cells of all maps before this one.


def locate(
    pyramid: tuple[Float[Array, "_ _ c"], ...],
    boxes: Float[Array, "n 4"],
    levels: Int[Array, " n"],
    *,
    spatial_scales: tuple[float, ...],
    aligned: bool,
) -> Places:
    """Returns the places of boxes; arguments as `jaxdet.regions.roi_align.pyramid_roi_align`."""
    if not pyramid or len(pyramid) != len(spatial_scales):
        raise ValueError(f"{len(pyramid)} levels need as many scales. Got {spatial_scales}")
    if min(spatial_scales) <= 0:
        raise ValueError(f"spatial_scale must be positive. Got {spatial_scales}")
    shapes = np.array([level.shape[:2] for level in pyramid], np.int32)
    offsets = np.cumsum([0, *shapes.prod(axis=1)[:-1]], dtype=np.int32)
    scales = np.array(spatial_scales, boxes.dtype)
    limits, offset, scale = (
        jnp.take(jnp.asarray(table), levels, axis=0, mode="clip")
        for table in (shapes, offsets, scales)
    )
    corners = rounding.rounded(boxes * scale[:, None]) - (0.5 if aligned else 0.0)
    low, high = corners[:, 1::-1], corners[:, :1:-1]
    sides = high - low if aligned else jnp.maximum(high - low, 1.0)
    return Places(low, sides, limits, offset)


def bins_of(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns the rows and columns of bins."""
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    if min(size) < 1:
        raise ValueError(f"output_size must be at least 1. Got {output_size}")
    return size
