"""Which pixels a cell of a feature map sees, and which cells belong to a place of the picture.

pixels    Pixel i covers [i, i + 1), so its center is at i + 0.5.
cells     Cell i of a feature map is the point i; in between is what interpolation would give. As a
          box of cells, (x1, y1, x2, y2) is half-open: cells x1, x1 + 1, ... x2 - 1.

All layers that look through windows count: convolutions and poolings. Others change nothing.
Records are ordered (y, x), points and boxes (x, y), as everywhere.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

Pair = tuple[float | int, float | int]


class Layer(NamedTuple):
    """A convolution or a pooling; one value for both axes, or (y, x)."""

    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int | tuple[int, int], int | tuple[int, int]] = 0
    """Cells added at both ends of an axis; where they differ, (low, high) in place of a number."""
    dilation: int | tuple[int, int] = 1


class ReceptiveField(NamedTuple):
    """What the cells of a feature map see: cell (i, j) a box around center + (i, j) * stride."""

    size: Pair  # (height, width), pixels.
    stride: Pair  # (y, x) distance of neighbours, pixels.
    center: Pair  # (y, x) of what cell (0, 0) sees, padding included, pixels.


PIXELS = ReceptiveField(size=(1, 1), stride=(1, 1), center=(0.5, 0.5))


def receptive_field(layers: Sequence[Layer], *, start: ReceptiveField = PIXELS) -> ReceptiveField:
    """Returns the receptive field after a chain of layers.

        size' = size + dilation * (kernel - 1) * stride
        center' = center + (dilation * (kernel - 1) / 2 - low padding) * stride
        stride' = stride * layer's stride

    Args:
      layers: From the input on.
      start: What the cells of the first layer's input see.

    Returns:
      The field of the last layer's cells; `start` if there are no layers.

    Source:
      Araujo et al. 2019 ("Computing Receptive Fields of Convolutional Neural Networks", Distill),
      section "Single-path networks".

    Departures:
      Pixels' centers are at halves, not at whole numbers.
    """
    return functools.reduce(_after, layers, start)


def union(fields: Sequence[ReceptiveField]) -> ReceptiveField:
    """Returns the field of the sum or the concatenation of branches.

    That is the smallest box around what the branches see, also if their centers differ (because
    their paddings do not fit together): then its center is between theirs.

    Args:
      fields: Of each branch; their strides must be the same.

    Source:
      Araujo et al. 2019 ("Computing Receptive Fields of Convolutional Neural Networks", Distill),
      section "Arbitrary computation graphs".

    Departures:
      The authors' code refuses branches with different centers.
    """
    if not fields:
        raise ValueError(f"fields must be one or more. Got {fields}")
    strides = [field.stride for field in fields]
    if any(stride != strides[0] for stride in strides):
        raise ValueError(f"fields must have the same stride. Got {strides}")
    sizes, centers = (
        np.array([getattr(field, name) for field in fields]) for name in ("size", "center")
    )
    low, high = (centers - sizes / 2).min(axis=0), (centers + sizes / 2).max(axis=0)
    return ReceptiveField(_pair(high - low), strides[0], _pair((low + high) / 2))


def to_input(field: ReceptiveField, cells: Real[Array, "*b 2"]) -> Float[Array, "*b 2"]:
    """Returns the centers of what cells see: center + cell * stride.

    Args:
      field: Of the feature map.
      cells: (x, y), fractions too.

    Returns:
      (x, y) in pixels. Inverse: `to_cells`.
    """
    return cells * _xy(field.stride, cells.shape) + _xy(field.center, cells.shape)


def to_cells(field: ReceptiveField, pixels: Real[Array, "*b 2"]) -> Float[Array, "*b 2"]:
    """Returns where points of the picture are on the feature map: (pixel - center) / stride.

    Args:
      field: Of the feature map.
      pixels: (x, y), pixels.

    Returns:
      (x, y) in cells, fractions; rounded, the cell that sees the point most centrally. Inverse:
      `to_input`.
    """
    return (pixels - _xy(field.center, pixels.shape)) / _xy(field.stride, pixels.shape)


def seen(field: ReceptiveField, cells: Real[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Returns the pixels that boxes of cells see.

    Args:
      field: Of the feature map.
      cells: Boxes of whole cells, half-open; one cell is (x, y, x + 1, y + 1).

    Returns:
      xyxy pixels, not clipped: what lies outside of the picture is padding.
    """
    half = _xy(field.size, (*cells.shape[:-1], 2)) / 2
    low, high = to_input(field, cells[..., :2]), to_input(field, cells[..., 2:] - 1)
    return jnp.concatenate([low - half, high + half], axis=-1)


def centered_in(field: ReceptiveField, boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """Returns the cells that see round a center in a box, low borders included.

    The window of a feature map that stands for a window of the picture. A box between the centers
    has none: x2 = x1 or y2 = y1.

    Args:
      field: Of the feature map.
      boxes: xyxy pixels.

    Returns:
      Boxes of whole cells, half-open, not clipped to the feature map.

    Source:
      SPPnet (He et al. 2014, arXiv:1406.4729v4), appendix A, "Mapping a Window to Feature Maps".

    Departures:
      The paper takes layers of padding kernel // 2, and x for the center of pixel x; a cell that
      is centered on the window's low border is outside there.
    """
    low, high = _first_cell(field, boxes[..., :2]), _first_cell(field, boxes[..., 2:])
    return jnp.concatenate([low, high], axis=-1)


def _after(field: ReceptiveField, layer: Layer) -> ReceptiveField:
    y, x = (_after_axis(field, layer, axis) for axis in (0, 1))
    return ReceptiveField((y[0], x[0]), (y[1], x[1]), (y[2], x[2]))


def _after_axis(
    field: ReceptiveField, layer: Layer, axis: int
) -> tuple[float | int, float | int, float]:
    """Size, stride and center along one axis."""
    kernel, stride, padding, dilation = (_of_axis(value, axis) for value in layer)
    low, high = padding if isinstance(padding, tuple) else (padding, padding)
    if min(kernel, stride, dilation) < 1 or min(low, high) < 0:
        raise ValueError(f"layers must be positive, paddings not negative. Got {layer}")
    reach = dilation * (kernel - 1)
    step = field.stride[axis]
    center = field.center[axis] + (reach / 2 - low) * step
    return field.size[axis] + reach * step, stride * step, center


def _of_axis(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, tuple) else value


def _first_cell(field: ReceptiveField, pixels: Float[Array, "*b 2"]) -> Float[Array, "*b 2"]:
    """The first cell that sees round a center at `pixels` or after."""
    cell = jnp.ceil(to_cells(field, pixels))
    # The quotient is rounded, and whole cells are at stake.
    cell = jnp.where(to_input(field, cell - 1) >= pixels, cell - 1, cell)
    return jnp.where(to_input(field, cell) < pixels, cell + 1, cell)


def _pair(values: Float[np.ndarray, "2"]) -> Pair:
    y, x = values.tolist()
    return y, x


def _xy(pair: Pair, shape: tuple[int, ...]) -> Float[np.ndarray, "*b 2"]:
    return np.broadcast_to(np.array(pair[::-1], np.float32), shape)
