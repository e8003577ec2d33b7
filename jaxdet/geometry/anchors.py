"""Reference boxes on a grid, from which a regressor starts.

An anchor has an area of size ** 2 and an aspect ratio of height / width. The anchors of a grid are
ordered by row, column, then anchor of the cell: row (y * grid width + x) * a + i of the result.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cell_anchors(
    sizes: Sequence[float | int], aspect_ratios: Sequence[float | int]
) -> Float[Array, "a 4"]:
    """Returns the anchors of one cell, around (0, 0), corners rounded to whole pixels.

        w = size / sqrt(ratio), h = size * sqrt(ratio)

    Args:
      sizes: Square roots of the areas, pixels, > 0.
      aspect_ratios: height / width, > 0.

    Returns:
      xyxy pixels: all sizes of the first ratio, then all sizes of the second, ...

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.1.1.

    Departures:
      Centered at 0 and rounded (half to even), as torchvision and Detectron do since FPN;
      py-faster-rcnn centers at 7.5 and rounds the sides.
    """
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"sizes must be positive, one or more. Got {sizes}")
    if not aspect_ratios or min(aspect_ratios) <= 0:
        raise ValueError(f"aspect_ratios must be positive, one or more. Got {aspect_ratios}")
    # On the host, in float32: the roots decide which way a half is rounded.
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    scales = np.asarray(sizes, np.float32)[None, :]
    w, h = (1 / heights * scales).ravel(), (heights * scales).ravel()
    return jnp.asarray(np.round(np.stack([-w, -h, w, h], axis=1) / 2))


def grid_anchors(
    cell: Float[Array, "a 4"], grid_size: tuple[int, int], stride: tuple[int, int]
) -> Float[Array, "m 4"]:
    """Returns the anchors of each cell of a grid, m = height * width * a.

    Args:
      cell: Anchors around (0, 0), xyxy pixels.
      grid_size: (height, width) of the grid, cells.
      stride: (y, x) distance of neighbours, pixels.

    Returns:
      xyxy pixels, ordered by row, column, anchor; cell (0, 0) is around the pixel corner (0, 0).
    """
    if min(grid_size) < 1:
        raise ValueError(f"grid_size must be positive. Got {grid_size}")
    if min(stride) < 1:
        raise ValueError(f"stride must be positive. Got {stride}")
    y = jnp.arange(grid_size[0], dtype=jnp.float32) * stride[0]
    x = jnp.arange(grid_size[1], dtype=jnp.float32) * stride[1]
    y, x = jnp.meshgrid(y, x, indexing="ij")
    shifts = jnp.stack([x, y, x, y], axis=-1)
    return (shifts[:, :, None, :] + cell[None, None, :, :]).reshape(-1, 4)


def pyramid_anchors(
    grid_sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    sizes: Sequence[Sequence[float | int]],
    aspect_ratios: Sequence[float | int],
) -> list[Float[Array, "_ 4"]]:
    """Returns the anchors of each level of a feature pyramid.

    The stride of a level is image size // grid size.

    Args:
      grid_sizes: (height, width) of each level, cells.
      image_size: (height, width) of the canvas, pixels.
      sizes: Of each level's anchors, pixels; see `cell_anchors`.
      aspect_ratios: height / width, the same on all levels.

    Returns:
      One array per level, xyxy pixels; see `grid_anchors`.

    Source:
      FPN (Lin et al. 2017, arXiv:1612.03144v2), section 4.1.
    """
    if len(sizes) != len(grid_sizes):
        raise ValueError(f"sizes must have {len(grid_sizes)} levels. Got {len(sizes)}")
    return [
        grid_anchors(
            cell_anchors(level, aspect_ratios),
            grid,
            (image_size[0] // grid[0], image_size[1] // grid[1]),
        )
        for grid, level in zip(grid_sizes, sizes, strict=True)
    ]
