"""Sampling an image anywhere, and the grids of points to sample it at.

points      (x, y), in cells: the value of row i, column j stands at (j, i).
normalized  (x, y) from -1 to 1 across the image; `to_cells` says where that is.

Letters: h w c the image, p q rows and columns of the result.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def bilinear_sample(
    image: Float[Array, "h w c"], points: Float[Array, "*b 2"]
) -> Float[Array, "*b c"]:
    """Returns the values of an image between its cells.

        sum over cells (i, j) of  image[i, j] max(0, 1 - |x - j|) max(0, 1 - |y - i|)

    Args:
      image: Any map; outside of it all is 0.
      points: (x, y), cells. Cut to 0 .. w - 1 and 0 .. h - 1, the border goes on outside.

    Returns:
      Values. Differentiable in both; the gradient for points on a row or column is that of the
      side beyond it.

    Source:
      Spatial Transformer Networks (Jaderberg et al. 2015, arXiv:1506.02025v3), section 3.3, eq. 5.
    """
    height, width, _ = image.shape
    points = jnp.where(jnp.isfinite(points), points, -2)  # Nowhere, with a gradient of 0.
    low = jnp.floor(points)
    fraction = points - low
    total = jnp.zeros((*points.shape[:-1], image.shape[-1]), image.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
            weight = jnp.abs(1 - dx - fraction[..., 0]) * jnp.abs(1 - dy - fraction[..., 1])
            row, column = (jnp.where(inside, at, 0).astype(jnp.int32) for at in (y, x))
            total += jnp.where(inside, weight, 0)[..., None] * image[row, column]
    return total


def affine_grid(
    theta: Float[Array, "2 3"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "p q 2"]:
    """Returns where an affine map takes the cells of a grid.

        (x, y) of the source = theta @ (x, y, 1) of the target

    Args:
      theta: On normalized coordinates; the identity is `jnp.eye(2, 3)`.
      size: (rows, columns) of the target.
      align_corners: Whether -1 and 1 are the middles of the outermost cells of the target, as in
        the paper, or their outer edges.

    Returns:
      Normalized points of the source.

    Source:
      Spatial Transformer Networks (Jaderberg et al. 2015, arXiv:1506.02025v3), section 3.2, eq. 1.
    """
    if min(size) < 1:
        raise ValueError(f"size must be positive. Got {size}")
    y, x = (_places(n, align_corners=align_corners) for n in size)
    x, y = jnp.meshgrid(x, y)
    target = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    return jnp.einsum("pqi,ji->pqj", target, theta, precision="highest")


def to_cells(
    points: Float[Array, "*b 2"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*b 2"]:
    """Returns normalized points as points of an image.

    Args:
      points: Normalized.
      size: (height, width) of the image.
      align_corners: As in `affine_grid`, of the image.

    Returns:
      (x, y), cells: -1 and 1 are 0 and w - 1, or -1/2 and w - 1/2.
    """
    sides = jnp.array([size[1], size[0]], points.dtype).reshape(*[1] * (points.ndim - 1), 2)
    if align_corners:
        return (points + 1) / 2 * (sides - 1)
    return ((points + 1) * sides - 1) / 2


def _places(n: int, *, align_corners: bool) -> Float[Array, " n"]:
    """Normalized middles of n cells."""
    cells = jnp.arange(n, dtype=jnp.float32)
    if align_corners and n > 1:
        return 2 * cells / (n - 1) - 1
    return (2 * cells + 1) / n - 1
