"""Bitmaps of objects: their boxes, their overlaps, and the way from a picture to a box and back.

masks     True or 1 on the object; pixel (row i, column j) covers [i, i + 1) x [j, j + 1).
frame     A grid of p x q cells over a box, in which a network sees and predicts the mask.

Letters: h w rows and columns of the picture, p q rows and columns of the frame, c and s the cells
or pixels of one axis that is read, d those that are written.

Both ways are bilinear, so each axis of each box has a small matrix and nothing else is needed:

    picture[h, w] = y_weights[h, p] @ frame[p, q] @ x_weights[w, q].T, or the other way
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import rounding

# Samples of a cell to look at from a pixel: it is touched from less than a pixel away, so by three
# at most (a cell's samples are 2/3 px apart or more, unless it has two), and one comes before them.
_TOUCHING = 4


def masks_to_boxes(masks: Bool[Array, "n h w"]) -> Float[Array, "n 4"]:
    """Returns the smallest box around each mask, xyxy pixels, half-open; zeros for an empty mask.

    Departures:
      Torchvision's boxes end in the last pixel, ours behind it: x2 and y2 are larger by 1.
    """
    x1, x2 = _ends(jnp.any(masks, axis=1))
    y1, y2 = _ends(jnp.any(masks, axis=2))
    return jnp.stack([x1, y1, x2, y2], axis=1).astype(jnp.float32)


def mask_iou(a: Bool[Array, "n h w"], b: Bool[Array, "m h w"]) -> Float[Array, "n m"]:
    """Intersection over union of each mask of `a` with each of `b`; 0 where both are empty.

    Args:
      a: Masks of one picture, fewer than 2 ** 24 pixels.
      b: Masks of the same picture.

    Returns:
      Overlaps, 0 to 1.
    """
    shared = _shared(a, b)
    return iou_ops.ratio(shared, _area(a)[:, None] + _area(b)[None] - shared)


def mask_intersection_over_first(
    a: Bool[Array, "n h w"], b: Bool[Array, "m h w"]
) -> Float[Array, "n m"]:
    """The part of each mask of `a` that lies in each of `b`: |A & B| / |A|, 0 if A is empty.

    What COCO's evaluation takes in place of IoU when `b` is a crowd region.

    Args:
      a: Masks of one picture, fewer than 2 ** 24 pixels.
      b: Masks of the same picture.

    Returns:
      Overlaps, 0 to 1.
    """
    shared = _shared(a, b)
    return iou_ops.ratio(shared, _area(a)[:, None])


def paste_masks(
    masks: Float[Array, "n p q"], boxes: Float[Array, "n 4"], size: tuple[int, int]
) -> Float[Array, "n h w"]:
    """Draws masks that are known in the frames of their boxes into pictures.

    A frame gets a border of cells of 0, its box grows with it and is cut to whole pixels, the last
    one included; the frame is stretched over these pixels bilinearly.

    Args:
      masks: Probabilities in each box's frame.
      boxes: xyxy pixels of the picture; what lies outside of it is not drawn.
      size: (height, width) of the picture, pixels.

    Returns:
      Probabilities, float32, 0 far from the box. These are n whole pictures: paste few at a time.
      Linear in `masks`; no gradient for `boxes`.

    Source:
      Mask R-CNN (He et al. 2017, arXiv:1703.06870v3), section 3.1, "Inference"; Torchvision 0.28,
      models/detection/roi_heads.py (paste_masks_in_image).

    Departures:
      A box that ends left of or above the picture is not drawn; torchvision raises an error.
    """
    if min(size) < 1:
        raise ValueError(f"size must be positive. Got {size}")
    boxes = lax.stop_gradient(boxes)
    y_weights = _paste_weights(boxes[:, 1], boxes[:, 3], masks.shape[1], size[0])
    x_weights = _paste_weights(boxes[:, 0], boxes[:, 2], masks.shape[2], size[1])
    return _apply(y_weights, masks, x_weights)


def crop_masks(
    masks: Float[Array, "n h w"] | Bool[Array, "n h w"],
    boxes: Float[Array, "n 4"],
    *,
    size: int | tuple[int, int],
) -> Float[Array, "n p q"]:
    """Returns masks as seen in the frames of boxes: the targets of a network's mask branch.

    A cell is the mean of bilinear samples, ceil(side / cells) of them along each axis: RoIAlign
    with one feature, for which it is two products of matrices. Pixels' values stand at their low
    corners, so that a mask that is cropped and pasted again moves by half a pixel.

    Args:
      masks: 0 to 1, one for each box.
      boxes: xyxy pixels of the masks; sides under 1 px count as 1 px.
      size: Cells of the frame, one number or (rows, columns).

    Returns:
      0 to 1, float32; samples more than a pixel outside of the picture count as 0. Linear in
      `masks`; no gradient for `boxes`. Inverse up to the resolution: `paste_masks`.

    Source:
      Mask R-CNN (He et al. 2017, arXiv:1703.06870v3), section 3; Torchvision 0.28,
      models/detection/roi_heads.py (project_masks_on_boxes).

    """
    p, q = (size, size) if isinstance(size, int) else size
    if min(p, q) < 1:
        raise ValueError(f"size must be positive. Got {size}")
    boxes = lax.stop_gradient(boxes)
    y_weights = _crop_weights(boxes[:, 1], boxes[:, 3], p, masks.shape[1])
    x_weights = _crop_weights(boxes[:, 0], boxes[:, 2], q, masks.shape[2])
    return _apply(y_weights, masks, x_weights)


def _ends(there: Bool[Array, "n c"]) -> tuple[Array, Array]:
    """The first place that is True and the one after the last; (0, 0) if there is none."""
    first = jnp.argmax(there, axis=1)
    behind = there.shape[1] - jnp.argmax(there[:, ::-1], axis=1)
    return first, jnp.where(jnp.any(there, axis=1), behind, 0)


def _shared(a: Bool[Array, "n h w"], b: Bool[Array, "m h w"]) -> Float[Array, "n m"]:
    """Pixels of both masks. Products of 0 and 1 are exact at any precision."""
    return jnp.einsum("nhw,mhw->nm", a.astype(jnp.float32), b.astype(jnp.float32))


def _area(masks: Bool[Array, "n h w"]) -> Float[Array, " n"]:
    return jnp.sum(masks, axis=(1, 2), dtype=jnp.float32)


def _apply(
    y_weights: Float[Array, "n d c"],
    masks: Float[Array, "n c s"] | Bool[Array, "n c s"],
    x_weights: Float[Array, "n e s"],
) -> Float[Array, "n d e"]:
    """Products mask by mask: whole pictures stay in the cache and one at a time becomes float."""

    def product(inputs):
        y_weights, mask, x_weights = inputs
        precision = lax.Precision.HIGHEST
        rows = jnp.matmul(y_weights, mask.astype(jnp.float32), precision=precision)
        return jnp.matmul(rows, x_weights.T, precision=precision)

    return lax.map(product, (y_weights, masks, x_weights))


@functools.partial(jax.jit, static_argnames=("n_cells", "n_pixels"))
def _paste_weights(
    low: Float[Array, " n"], high: Float[Array, " n"], n_cells: int, n_pixels: int
) -> Float[Array, "n d c"]:
    """What each pixel of an axis takes from each cell of a frame."""
    n_bordered = n_cells + 2
    # Whole boxes often grow to whole boxes, of which the last bit decides where they are cut.
    half = rounding.rounded((high - low) * 0.5 * (n_bordered / n_cells))
    center = (low + high) * 0.5
    first, last = (jnp.trunc(end)[:, None] for end in (center - half, center + half))
    n_covered = jnp.maximum(last - first + 1, 1)
    pixels = jnp.arange(n_pixels, dtype=low.dtype)[None] - first
    cells = jnp.maximum((pixels + 0.5) * (n_bordered / n_covered) - 0.5, 0)
    weights = _hat(cells[:, :, None], jnp.arange(1, n_cells + 1, dtype=low.dtype)[None, None])
    covered = (pixels >= 0) & (pixels <= last - first)
    return jnp.where(covered[:, :, None], weights, 0)


@functools.partial(jax.jit, static_argnames=("n_cells", "n_pixels"))
def _crop_weights(
    low: Float[Array, " n"], high: Float[Array, " n"], n_cells: int, n_pixels: int
) -> Float[Array, "n d c"]:
    """What each cell of a frame takes from each pixel of an axis: the mean over its samples."""
    low, side = (x[:, None, None] for x in (low, jnp.where(high - low > 1, high - low, 1)))
    n_samples = jnp.ceil(rounding.divide(side, n_cells))
    step = side / n_cells / n_samples
    cells = jnp.arange(n_cells, dtype=low.dtype)[None, :, None]
    pixels = jnp.arange(n_pixels, dtype=low.dtype)[None, None, :]
    start = low + cells * (side / n_cells)
    first = jnp.maximum(jnp.floor((pixels - 1 - start) / step - 0.5), 0)
    total = jnp.zeros((), low.dtype)
    for sample in (first + i for i in range(_TOUCHING)):
        place = start + (sample + 0.5) * step
        counts = (sample >= 0) & (sample < n_samples) & (place >= -1) & (place <= n_pixels)
        total += jnp.where(counts, _hat(jnp.clip(place, 0, n_pixels - 1), pixels), 0)
    return total / n_samples


def _hat(place: Array, center: Array) -> Array:
    """Bilinear interpolation's weight: 1 at the center, 0 one step away."""
    return jnp.maximum(1 - jnp.abs(place - center), 0)
