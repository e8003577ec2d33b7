"""COCO's two spellings of a mask, polygons and run lengths, and the pixels of a segment.

counts    Run lengths down the columns of a picture: off, on, off, ... They begin with off.
"""

import functools
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as native
from jaxtyping import Bool, Float32, Int

from jaxdet.data.fields import short
from jaxdet.data.records import DataError, Polygons, Segment, StoredBitmap

_FAR = 50_000  # px
_LONGEST = 100  # Length of an outline in terms of its picture's pixels.

Counts = Int[np.ndarray, " r"]


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
    if not isinstance(value, dict) or value.get("size") != list(size):
        raise DataError(
            f"{where} must be a list of polygons, or run lengths with size {list(size)}: found "
            f"{short(value)}. Correct it."
        )
    counts = _counts(value.get("counts"), size, f"{where}.counts")
    return StoredBitmap(functools.partial(_decode, counts, size))


def write_segmentation(segment: Segment, size: tuple[int, int]) -> Any:
    """The `segmentation` field for a segment: polygons as they are, run lengths of pixels."""
    if isinstance(segment, Polygons):
        return [[float(v) for v in ring.reshape(-1)] for ring in segment.rings]
    return encode(segment_mask(segment, size))


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Run lengths of a mask in COCO's string spelling, fit for JSON."""
    counts = native.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in mask.shape], "counts": text}


def segment_mask(segment: Segment, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a segment in a picture of (height, width) `size`, as COCO's tools draw it.

    Source:
      cocoapi `maskApi.c`, rleFrPoly.
    """
    height, width = size
    if isinstance(segment, Polygons):
        # What is outside is drawn point by point too, so it must not be far.
        rings = [np.clip(ring, -_FAR, _FAR).reshape(-1).tolist() for ring in segment.rings]
        runs: Any = native.frPyObjects(rings, height, width)
        runs = native.merge(runs)
        return np.asarray(native.decode(runs)).astype(bool)
    canvas = np.zeros(size, bool)
    mask, (x, y) = segment.mask, segment.corner
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + mask.shape[1], width), min(y + mask.shape[0], height)
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = mask[y1 - y : y2 - y, x1 - x : x2 - x]
    return canvas


def mask_box(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    """The smallest box around a mask, xyxy; zeros around none."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def polygon_box(segment: Polygons) -> tuple[float, float, float, float]:
    """The smallest box around the outlines, xyxy."""
    points = np.concatenate(segment.rings)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2


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
    limit = _LONGEST * (sum(size) + size[0] * size[1])  # Drawing takes memory by the length.
    if 2 * len(flat) * reach > limit and (length := np.abs(np.diff(ring, axis=0)).sum()) > limit:
        raise DataError(f"{where} is {length:.0f} px long in a picture of {size}. Correct it.")
    return ring.astype(np.float32)


def _counts(value: Any, size: tuple[int, int], where: str) -> Counts:
    if isinstance(value, str):
        numbers = _from_string(value)
    else:
        whole = isinstance(value, list) and all(type(v) is int for v in value)
        numbers = value if whole else None
    total = size[0] * size[1]
    if numbers is None or any(not 0 <= n <= total for n in numbers) or sum(numbers) != total:
        raise DataError(
            f"{where} must be run lengths that sum to {size[0]} x {size[1]}: found "
            f"{short(value)}. Correct it."
        )
    return np.array(numbers, np.int32)


def _from_string(text: str) -> list[int] | None:
    """Run lengths from COCO's string: base 32 with a sign, differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode():
        digit = code - 48
        if not 0 <= digit < 64 or shift > 40:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts if shift == 0 else None


def _decode(counts: Counts, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    on = np.arange(len(counts)) % 2 == 1
    return np.repeat(on, counts).reshape(size[1], size[0]).T
