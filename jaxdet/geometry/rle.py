"""Masks as COCO's run lengths, on the host: files in, bitmaps out, and back.

rle       {"size": [height, width], "counts": ...}. The pixels are read column by column, the first
          column first; `counts` are the lengths of runs of 0 and of 1 by turns, 0 first, either as
          a list of numbers (COCO's crowd annotations) or compressed to a string (results).
polygon   [x1, y1, x2, y2, ...], pixels; column i covers [i, i + 1).

What comes in is typed `Any`, as it may be whatever a JSON file holds; a fault is a ValueError. What
goes out is an `Rle`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import faster_coco_eval.mask_api_new_cpp as api
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Shaped

# Larger pictures are taken for a fault: a file of a few bytes must not ask for all memory.
MAX_PIXELS = 2**28
# The same for the length of an object's outline, pixels.
MAX_OUTLINE = 2**22


class Rle(TypedDict):
    """Compressed run lengths, ready for JSON."""

    size: list[int]  # [height, width], pixels.
    counts: str


def encode(mask: Shaped[np.ndarray, "..."]) -> Rle:
    """Returns a bitmap's run lengths; the inverse of `decode`.

    Args:
      mask: [height, width], bool, or whole numbers of which all but 0 are the object.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise ValueError(f"mask must be a bitmap. Got {mask.dtype}{list(mask.shape)}")
    size = _checked_size(list(mask.shape))
    pixels = np.asfortranarray(mask != 0).astype(np.uint8)
    return _rle(size, api.encode(pixels[:, :, None])[0])


def decode(rle: Any) -> Bool[np.ndarray, "h w"]:
    """Returns the bitmap of run lengths, compressed or not."""
    (height, width), counts = _counts(rle)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def compress(rle: Any) -> Rle:
    """Returns the same run lengths, checked, compressed and without empty runs between others."""
    size, counts = _counts(rle)
    if 0 in counts[1:]:
        return encode(decode(rle))
    return _rle(size, api.frUncompressedRLE([{"size": size, "counts": counts}])[0])


def from_polygons(polygons: Any, size: tuple[int, int]) -> Rle:
    """Returns the run lengths of what polygons cover together, as COCO's own tool draws them.

    Args:
      polygons: A list of polygons, the parts of one object; cut off at the picture's borders.
      size: (height, width) of the picture, pixels.

    Source:
      COCO (Lin et al. 2014, arXiv:1405.0312) and its code, pycocotools `mask.py` (frPyObjects).
    """
    height, width = _checked_size(size)
    if not isinstance(polygons, list | tuple) or not polygons:
        raise ValueError(f"polygons must be a list of one or more. Got {polygons!r}")
    outlines = [_checked_polygon(polygon) for polygon in polygons]
    if sum(map(_outline, outlines)) > MAX_OUTLINE:
        raise ValueError(f"polygons must be shorter than {MAX_OUTLINE} px around. Got more")
    parts = api.frPoly([outline.ravel().tolist() for outline in outlines], height, width)
    return _rle([height, width], api.merge(parts, 0))


def area(rle: Any) -> int:
    """Returns how many pixels are the object."""
    return sum(_counts(rle)[1][1::2])


def to_box(rle: Any) -> Float32[np.ndarray, "4"]:
    """Returns the smallest box around the object, xyxy pixels, half-open; zeros if it is empty."""
    if area(rle) == 0:  # Of which faster-coco-eval 1.7 makes a box at infinity.
        return np.zeros(4, np.float32)
    x, y, width, height = api.toBbox([compress(rle)])[0]
    return np.array([x, y, x + width, y + height], np.float32)


def union(rles: Sequence[Any]) -> Rle:
    """Returns what one or more masks of one picture cover together."""
    size, compressed = _compressed(rles, "rles")
    if not compressed:
        raise ValueError("rles must be one or more. Got none")
    return _rle(size, api.merge(compressed, 0))


def iou(
    a: Sequence[Any],
    b: Sequence[Any],
    *,
    crowd: Sequence[bool] | None = None,
) -> Float64[np.ndarray, "n m"]:
    """Returns the overlap of each mask of `a` with each of `b`: |A & B| / |A | B|.

    Args:
      a: Masks of one picture: detections.
      b: Masks of the same picture: ground truth.
      crowd: Which of `b` are regions of many objects, for which it is |A & B| / |A|.

    Returns:
      0 to 1.

    Source:
      COCO (Lin et al. 2014, arXiv:1405.0312) and its code, pycocotools `mask.py` (iou).
    """
    size_a, first = _compressed(a, "a")
    size_b, second = _compressed(b, "b")
    crowd = [False] * len(second) if crowd is None else crowd
    if len(crowd) != len(second):
        raise ValueError(f"crowd must have {len(second)} flags. Got {len(crowd)}")
    if not first or not second:
        return np.zeros((len(first), len(second)))
    if size_a != size_b:
        raise ValueError(f"b must be masks of {size_a}, the size of a. Got {size_b}")
    return np.asarray(api.iou(first, second, [int(flag) for flag in crowd]))


def _rle(size: list[int], raw: Mapping[str, Any]) -> Rle:
    return {"size": size, "counts": raw["counts"].decode("ascii")}


def _counts(rle: Any) -> tuple[list[int], list[int]]:
    """Size and lengths of the runs, checked: they add up to the picture."""
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"rle must have size and counts. Got {rle!r:.200}")
    size, counts = _checked_size(rle["size"]), rle["counts"]
    if isinstance(counts, str | bytes):
        counts = _uncompressed(size, counts)
    if not isinstance(counts, list) or not all(map(_is_whole, counts)):
        raise ValueError(f"counts must be whole numbers or a string. Got {counts!r:.200}")
    if min(counts, default=0) < 0:
        raise ValueError(f"counts must not be negative. Got {min(counts)}")
    if sum(counts) != math.prod(size):
        raise ValueError(
            f"counts must add up to {size[0]} x {size[1]} = {math.prod(size)}. Got {sum(counts)}"
        )
    return size, counts


def _uncompressed(size: list[int], counts: str | bytes) -> list[int]:
    try:
        return api.toUncompressedRLE([{"size": size, "counts": counts}])[0]["counts"]
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"counts is no such string: {error} Got {counts!r:.200}") from error


def _compressed(rles: Sequence[Any], name: str) -> tuple[list[int], list[Rle]]:
    """The size that masks share, and the masks, checked."""
    compressed = [compress(rle) for rle in rles]
    sizes = [rle["size"] for rle in compressed]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"{name} must be masks of one size. Got {sizes}")
    return (sizes[0] if sizes else []), compressed


def _checked_size(size: Any) -> list[int]:
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_whole, size))
    if not whole or min(size) < 1:
        raise ValueError(f"size must be height and width, whole and positive. Got {size!r:.200}")
    height, width = map(int, size)
    if height * width > MAX_PIXELS:
        raise ValueError(f"size must be at most {MAX_PIXELS} pixels. Got {height} x {width}")
    return [height, width]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _checked_polygon(polygon: Any) -> Float[np.ndarray, "k 2"]:
    """The corners, finite and three or more."""
    try:
        numbers = np.asarray(polygon)
    except ValueError as error:  # Lists of different lengths.
        raise ValueError(f"a polygon must be a list of numbers. Got {polygon!r:.200}") from error
    is_pairs = numbers.ndim == 1 and numbers.size >= 6 and numbers.size % 2 == 0
    if not is_pairs or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise ValueError(
            f"a polygon must be 6 or more finite numbers, x and y by turns. Got {polygon!r:.200}"
        )
    return numbers.astype(np.float64).reshape(-1, 2)


def _outline(corners: Float[np.ndarray, "k 2"]) -> float:
    """The length of a polygon, and so the work to draw it: the longer side of each step."""
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
