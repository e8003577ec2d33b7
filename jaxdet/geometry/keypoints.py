"""Keypoints of objects, and the heatmaps from which networks read them.

keypoints (x, y, visibility), pixels or cells; column i covers [i, i + 1), so its middle is i + 0.5.
          Visibility is COCO's: 0 not labelled, 1 hidden, 2 visible.
heatmaps  One map of h x w cells for each of k keypoints, channels last.

Two families: logits over the cells of an object's box (Mask R-CNN), of which one cell is right, and
Gaussians over the cells of a picture (Hourglass).
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Real

# Points along an axis of a box that are looked at together; 32 to 128 are alike on a CPU.
BLOCK = 64
# Boxes with longer sides, pixels, are looked at on so many points of that side: a wild box must not
# hold up the others.
MAX_SIDE = 4096
# Bicubic convolution's free parameter, as in torch and OpenCV.
_CUBIC = -0.75
# A Gaussian's logarithm is taken down to this.
_TINY = 1e-20


def keypoints_to_heatmaps(
    keypoints: Float[Array, "n k 3"], boxes: Float[Array, "n 4"], *, size: int
) -> tuple[Int32[Array, "n k"], Bool[Array, "n k"]]:
    """Returns the cell of a box's heatmap in which each keypoint lies.

        column = floor((x - x1) * size / (x2 - x1))

    Args:
      keypoints: Of one object each, pixels; visibility 0 is not labelled.
      boxes: xyxy pixels. Their right and lower borders belong to the last column and row.
      size: Rows and columns of the heatmap.

    Returns:
      Cells, row * size + column, for a softmax over size * size logits, and whether there is one: a
      keypoint that is not labelled or outside of the box has none, and cell 0.

    Source:
      Mask R-CNN (He et al. 2017, arXiv:1703.06870v3), section 5; Torchvision 0.28,
      models/detection/roi_heads.py (keypoints_to_heatmap).
    """
    if size < 1:
        raise ValueError(f"size must be positive. Got {size}")
    column, in_columns = _cell(keypoints[..., 0], boxes[:, 0], boxes[:, 2], size)
    row, in_rows = _cell(keypoints[..., 1], boxes[:, 1], boxes[:, 3], size)
    valid = in_columns & in_rows & (keypoints[..., 2] > 0)
    return jnp.where(valid, row * size + column, 0), valid


def heatmaps_to_keypoints(
    heatmaps: Float[Array, "n h w k"], boxes: Float[Array, "n 4"]
) -> tuple[Float[Array, "n k 3"], Float[Array, "n k"]]:
    """Finds the highest point of each heatmap, stretched over its box by bicubic convolution.

    The box is as many points wide and high as it has pixels, rounded up and at least 1; of equal
    points the first in reading order is taken. Points are looked at block by block: a box costs
    what its area costs, whatever the size of the picture.

    Args:
      heatmaps: Logits, one row of maps for each box.
      boxes: xyxy pixels.

    Returns:
      (x, y, 1) in pixels, the middles of the points found, and the maps' values there. Not
      differentiable.

    Source:
      Mask R-CNN (He et al. 2017, arXiv:1703.06870v3), section 5; Torchvision 0.28,
      models/detection/roi_heads.py (heatmaps_to_keypoints). Bicubic convolution: Keys 1981 (IEEE
      Transactions on Acoustics, Speech and Signal Processing 29), with -3/4 in place of -1/2.

    Departures:
      Sides above `MAX_SIDE` are looked at on `MAX_SIDE` points. Sides that are NaN are 1.
    """
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    sides = jnp.where(sides > 1, sides, 1)
    points = jnp.ceil(jnp.minimum(sides, MAX_SIDE)).astype(jnp.int32)
    maps = jnp.moveaxis(heatmaps.astype(jnp.float32), -1, 1)
    scores, places = lax.map(_highest, (maps, points))
    columns, rows = places % points[:, :1], places // points[:, :1]
    steps = (sides / points.astype(jnp.float32))[:, None]
    xy = low[:, None] + (jnp.stack([columns, rows], axis=-1) + 0.5) * steps
    return jnp.concatenate([xy, jnp.ones_like(xy[..., :1])], axis=-1), scores


def gaussian_heatmaps(
    keypoints: Float[Array, "*b k 3"], *, size: tuple[int, int], sigma: float | int
) -> Float[Array, "*b h w k"]:
    """Returns a Gaussian around each keypoint, 1 at the keypoint: the target of a regression.

        exp(-((x - column - 0.5) ** 2 + (y - row - 0.5) ** 2) / (2 sigma ** 2))

    Args:
      keypoints: In cells of the heatmap; visibility 0 gives a map of zeros.
      size: (height, width) of the heatmap, cells.
      sigma: Standard deviation, cells.

    Returns:
      Values, 0 to 1. Inverse: `decode_gaussian`.

    Source:
      Stacked Hourglass (Newell et al. 2016, arXiv:1603.06937v2), section 3, "Training Details":
      sigma 1 on 64 x 64 cells.

    Departures:
      The Gaussian is around the keypoint, not around the cell it is in, which DARK (Zhang et al.
      2020, arXiv:1910.06278, section 3, "Coordinate Encoding") found better. It is not cut off.
    """
    if min(size) < 1:
        raise ValueError(f"size must be positive. Got {size}")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive. Got {sigma}")
    by_y = _gaussian(keypoints[..., 1], size[0], sigma)
    by_x = _gaussian(keypoints[..., 0], size[1], sigma)
    maps = by_y[..., :, None, :] * by_x[..., None, :, :]
    return jnp.where(keypoints[..., None, None, :, 2] > 0, maps, 0)


def decode_gaussian(
    heatmaps: Float[Array, "*b h w k"],
) -> tuple[Float[Array, "*b k 3"], Float[Array, "*b k"]]:
    """Returns the middle of the Gaussian in each map; the inverse of `gaussian_heatmaps`.

    The highest cell, the first in reading order of equal ones, moved by up to half a cell along
    each axis to the top of the parabola through the logarithms l of it and its two neighbours:

        (l[+1] - l[-1]) / (2 (2 l[0] - l[-1] - l[+1]))

    Args:
      heatmaps: Predictions; values of 0 and below count as very small.

    Returns:
      (x, y, 1) in cells, and the highest values. Exact for a Gaussian of any sigma, unless it is in
      the outermost cells, of which it is the middle.

    Source:
      DARK (Zhang et al. 2020, arXiv:1910.06278), section 3, "Coordinate Decoding".

    Departures:
      The Gaussian is taken to be round, so that the axes are apart; the paper takes any, and
      smooths predictions first.
    """
    height, width, n = heatmaps.shape[-3:]
    flat = heatmaps.reshape(*heatmaps.shape[:-3], height * width, n)
    place, scores = jnp.argmax(flat, axis=-2), jnp.max(flat, axis=-2)
    row, column = place // width, place % width

    def level(row: Array, column: Array) -> Array:
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        value = jnp.take_along_axis(flat, index[..., None, :], axis=-2)[..., 0, :]
        return jnp.log(jnp.maximum(value, _TINY))

    top = level(row, column)
    dx = _top_of_parabola(level(row, column - 1), top, level(row, column + 1))
    dy = _top_of_parabola(level(row - 1, column), top, level(row + 1, column))
    dx = jnp.where((column > 0) & (column < width - 1), dx, 0)
    dy = jnp.where((row > 0) & (row < height - 1), dy, 0)
    xy = jnp.stack([column + dx, row + dy], axis=-1) + 0.5
    return jnp.concatenate([xy, jnp.ones_like(xy[..., :1])], axis=-1), scores


def flip_keypoints(
    keypoints: Float[Array, "*b k 3"],
    width: Real[Array, ""] | float | int,
    pairs: Sequence[tuple[int, int]],
) -> Float[Array, "*b k 3"]:
    """Mirrors keypoints from left to right: x becomes width - x, and left becomes right.

    Args:
      keypoints: Pixels.
      width: Of the picture, pixels.
      pairs: Indices of keypoints that change places (the left and the right eye, ...).

    Returns:
      Keypoints; those of visibility 0 are all zeros.
    """
    n = keypoints.shape[-2]
    named = [index for pair in pairs for index in pair]
    if len(set(named)) < len(named) or not set(named) <= set(range(n)):
        raise ValueError(f"pairs must be different indices below {n}. Got {pairs}")
    order = np.arange(n)
    for left, right in pairs:
        order[left], order[right] = right, left
    x, y, visibility = jnp.moveaxis(keypoints[..., order, :], -1, 0)
    flipped = jnp.stack([width - x, y, visibility], axis=-1)
    return jnp.where(visibility[..., None] > 0, flipped, 0)


def distances(
    keypoints: Float[Array, "*b k 3"], pairs: Sequence[tuple[int, int]]
) -> tuple[Float[Array, "*b p"], Bool[Array, "*b p"]]:
    """Returns how far apart two keypoints of an object are: its limbs, or the size of its torso.

    Args:
      keypoints: Pixels.
      pairs: Indices of the two keypoints of each of p distances.

    Returns:
      Pixels, and whether both keypoints are labelled; 0 where one is not. The gradient at 0 is 0.
    """
    n = keypoints.shape[-2]
    if not all(0 <= index < n for pair in pairs for index in pair):
        raise ValueError(f"pairs must be indices below {n}. Got {pairs}")
    first, second = (keypoints[..., list(side), :] for side in zip(*pairs, strict=True))
    known = (first[..., 2] > 0) & (second[..., 2] > 0)
    squares = jnp.sum((first[..., :2] - second[..., :2]) ** 2, axis=-1)
    apart = known & (squares > 0)
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0), known


def _cell(
    place: Float[Array, "n k"], low: Float[Array, " n"], high: Float[Array, " n"], size: int
) -> tuple[Int32[Array, "n k"], Bool[Array, "n k"]]:
    """The cell along one axis, and whether there is one."""
    low, high = low[:, None], high[:, None]
    # The reciprocal first, as torch: it decides on which side of a border a keypoint on it falls.
    cell = jnp.floor((place - low) * (1 / (high - low) * size))
    cell = jnp.where(place == high, size - 1, cell)
    # Also False for the NaN of boxes without area.
    inside = (cell >= 0) & (cell < size)
    return jnp.where(inside, cell, 0).astype(jnp.int32), inside


def _highest(
    inputs: tuple[Float[Array, "k h w"], Int32[Array, "2"]],
) -> tuple[Float[Array, " k"], Int32[Array, " k"]]:
    """The highest value of each map stretched over (width, height) points, and its place.

    Places count in reading order: y * width + x.
    """
    maps, (width, height) = inputs
    steps = jnp.arange(BLOCK, dtype=jnp.int32)

    def look_at_columns(i, best):
        x = i * BLOCK + steps
        x_weights = _cubic_weights(x, width, maps.shape[2])
        wide = jnp.matmul(maps, x_weights.T, precision=lax.Precision.HIGHEST)

        def look_at_rows(j, best):
            y = j * BLOCK + steps
            y_weights = _cubic_weights(y, height, maps.shape[1])[None]
            values = jnp.matmul(y_weights, wide, precision=lax.Precision.HIGHEST)
            there = (y < height)[:, None] & (x < width)[None]
            values = jnp.where(there[None], values, -jnp.inf)
            return _better(best, _first_highest(values, y[:, None] * width + x[None]))

        return lax.fori_loop(0, (height + BLOCK - 1) // BLOCK, look_at_rows, best)

    nothing = (jnp.full(maps.shape[0], -jnp.inf), jnp.zeros(maps.shape[0], jnp.int32))
    return lax.fori_loop(0, (width + BLOCK - 1) // BLOCK, look_at_columns, nothing)


def _first_highest(
    values: Float[Array, "k y x"], places: Int32[Array, "y x"]
) -> tuple[Float[Array, " k"], Int32[Array, " k"]]:
    """The highest value and the lowest of its places: two plain reductions, faster than argmax."""
    top = jnp.max(values, axis=(1, 2))
    at_top = values == top[:, None, None]
    return top, jnp.min(places[None], axis=(1, 2), where=at_top, initial=2**31 - 1)


def _better(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """The higher of two values with their places; the lower place if they are equal."""
    second = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(second, b[0], a[0]), jnp.where(second, b[1], a[1])


def _cubic_weights(
    point: Int32[Array, " p"], n_points: Int32[Array, ""], n_cells: int
) -> Float[Array, "p c"]:
    """What points of a stretched axis take from its cells; taps beyond the ends are the ends."""
    place = (point + 0.5) * (n_cells / n_points) - 0.5
    first = jnp.floor(place)
    t = (place - first)[:, None]
    cells = jnp.arange(n_cells, dtype=jnp.int32)[None]
    total = jnp.zeros((), jnp.float32)
    for tap in (-1, 0, 1, 2):
        cell = jnp.clip(first.astype(jnp.int32) + tap, 0, n_cells - 1)
        total += jnp.where(cell[:, None] == cells, _cubic(jnp.abs(t - tap)), 0)
    return total


def _cubic(distance: Float[Array, "p 1"]) -> Float[Array, "p 1"]:
    """The kernel of bicubic convolution."""
    a, d = _CUBIC, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return jnp.where(d <= 1, near, jnp.where(d < 2, far, 0))


def _gaussian(
    place: Float[Array, "*b k"], n_cells: int, sigma: float | int
) -> Float[Array, "*b c k"]:
    cells = (jnp.arange(n_cells, dtype=place.dtype) + 0.5)[:, None]
    distance = place[..., None, :] - cells.reshape(*[1] * (place.ndim - 1), n_cells, 1)
    return jnp.exp(-((distance / (math.sqrt(2) * sigma)) ** 2))


def _top_of_parabola(before: Array, top: Array, after: Array) -> Array:
    """Where a parabola is highest, between half a cell before and half a cell after its top."""
    bend = 2 * top - before - after
    return jnp.clip((after - before) / (2 * jnp.where(bend > 0, bend, 1)), -0.5, 0.5)
