"""COCO's two spellings of a mask, polygons and run lengths, and the pixels of a segment."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from jaxdet.data.fields import short
from jaxdet.data.records import DataError, Polygons, Segment, StoredBitmap
from jaxdet.geometry import rle

_FAR = 50_000  # px
_LONGEST = 100  # Length of an outline in terms of its picture's pixels.


def parse_segmentation(value: Any, size: tuple[int, int], where: str) -> Segment | None:
    """A COCO `segmentation` field, checked.

    Args:
      value: From the file: polygons, run lengths as a string or a list, or nothing.
      size: (height, width) of the picture.
      where: For messages.

    Returns:
      The segment; None for an empty field.
    """
    if value is None or value == []:
        return None
    if isinstance(value, list):
        return Polygons(tuple(outline(r, size, f"{where}[{i}]") for i, r in enumerate(value)))
    try:
        runs = rle.compress(value)
    except ValueError as error:
        raise DataError(f"{where}: {error}. Correct it.") from error
    if runs["size"] != list(size):
        raise DataError(f"{where}.size is {runs['size']}, the picture's {list(size)}. Correct it.")
    return StoredBitmap(functools.partial(rle.decode, runs))


def write_segmentation(segment: Segment, size: tuple[int, int]) -> Any:
    """The `segmentation` field for a segment: polygons as they are, run lengths of pixels."""
    if isinstance(segment, Polygons):
        return [[float(v) for v in ring.reshape(-1)] for ring in segment.rings]
    return rle.encode(segment_mask(segment, size))


def segment_mask(segment: Segment, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a segment in a picture of (height, width) `size`, as COCO's tools draw it.

    Source:
      cocoapi `maskApi.c`, rleFrPoly.
    """
    height, width = size
    if isinstance(segment, Polygons):
        # What is outside is drawn point by point too, so it must not be far.
        rings = [np.clip(ring, -_FAR, _FAR).reshape(-1) for ring in segment.rings]
        return rle.decode(rle.union([rle.from_polygons([ring], size) for ring in rings]))
    canvas = np.zeros(size, bool)
    mask, (x, y) = segment.mask, segment.corner
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + mask.shape[1], width), min(y + mask.shape[0], height)
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = mask[y1 - y : y2 - y, x1 - x : x2 - x]
    return canvas


def outline(values: Any, size: tuple[int, int], where: str) -> Float32[np.ndarray, "p 2"]:
    """An outline from the x, y, x, y, ... of somebody's file, checked.

    Args:
      values: A list of numbers, if it is one.
      size: (height, width) of the picture.
      where: For messages.

    Returns:
      At least three points.
    """
    try:
        flat = np.array(values)
    except ValueError:  # Lists of different lengths.
        flat = np.array(None)
    good = flat.dtype.kind in "iuf" and flat.ndim == 1 and len(flat) >= 6 and len(flat) % 2 == 0
    flat = flat.astype(np.float64) if good else np.array([np.nan])
    reach = np.abs(flat).max()
    if not np.isfinite(reach):
        raise DataError(
            f"{where} must be x, y, x, y, ... of at least three points, all finite numbers: "
            f"found {short(values)}. Correct it."
        )
    if reach > _FAR:
        flat = np.clip(flat, -_FAR, _FAR)
    ring = flat.reshape(-1, 2)
    # Drawing takes memory by the length.
    limit = min(_LONGEST * (sum(size) + size[0] * size[1]), rle.MAX_OUTLINE // 2)
    if 2 * len(flat) * reach > limit and (length := np.abs(np.diff(ring, axis=0)).sum()) > limit:
        raise DataError(f"{where} is {length:.0f} px long in a picture of {size}. Correct it.")
    return ring.astype(np.float32)
