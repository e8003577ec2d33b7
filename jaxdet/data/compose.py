"""One picture of several: mosaics, and objects pasted from one picture into another.

A picture is (pixels [h w 3], its annotation).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from jaxdet.data import segments
from jaxdet.data.records import Annotation
from jaxdet.data.transforms import FILL, MIN_AREA_LEFT, Size, take

Picture = tuple[UInt8[np.ndarray, "_ _ 3"], Annotation]

MOSAIC = 4  # Pictures of a mosaic.
HIDDEN = 1  # Visibility of a keypoint that is labelled, but covered.


def tile_sizes(cut: tuple[int, int], canvas: Size) -> list[Size]:
    """(height, width) of the four parts of a canvas that is cut at (y, x), row by row."""
    (y, x), (height, width) = cut, canvas
    return [(y, x), (y, width - x), (height - y, x), (height - y, width - x)]


def mosaic(pictures: Sequence[Picture], cut: tuple[int, int], canvas: Size) -> Picture:
    """Four pictures on one canvas, their corners at the cut; `FILL` where a tile is not filled.

    Args:
      pictures: Top left, top right, bottom left, bottom right; each fits its tile.
      cut: (y, x) at which the four meet.
      canvas: (height, width) of the result.

    Returns:
      The canvas with the objects of all four; the image's id and name are those of the first.

    Source:
      YOLOv4 (Bochkovskiy et al. 2020, arXiv:2004.10934v1), section 3.3.
    """
    sheet = np.full((*canvas, 3), FILL, np.uint8)
    moved = []
    for number, (pixels, annotation) in enumerate(pictures):
        height, width = pixels.shape[:2]
        y = cut[0] if number >= 2 else cut[0] - height
        x = cut[1] if number % 2 else cut[1] - width
        sheet[y : y + height, x : x + width] = pixels
        moved.append(_shifted(annotation, x, y))
    captions = tuple(caption for annotation in moved for caption in annotation.captions)
    return sheet, _joined(moved)._replace(size=canvas, captions=captions)


def copy_paste(rng: np.random.Generator, picture: Picture, donor: Picture) -> Picture:
    """Pastes some objects of one picture over another, in their places.

    Args:
      rng: As many draws as the donor has objects are made from it.
      picture: What to paste on.
      donor: Where objects are from, no larger than `picture`; those with a segment that are no
        crowds, each with a chance of one half.

    Returns:
      The picture with the objects of both. Covered parts are taken out of segments and boxes,
      keypoints under what was pasted are hidden, objects without a visible pixel are gone, those
      with less than a quarter of what they had difficult. Of an object without a segment, the box
      stays as it is.

    Source:
      Simple Copy-Paste (Ghiasi et al. 2021, arXiv:2012.07177v2), section 3; without blending,
      which the paper found to make no difference.
    """
    (pixels, annotation), (other_pixels, other) = picture, donor
    chosen = (rng.uniform(size=len(other.labels)) < 0.5) & ~other.crowd
    cover = np.zeros(other.size, bool)
    for i in np.flatnonzero(chosen).tolist():
        shape = _shape(other, i)
        chosen[i] = shape is not None
        if shape is not None:
            cover |= shape
    if not cover.any():
        return picture
    pixels = pixels.copy()
    pixels[: other.size[0], : other.size[1]][cover] = other_pixels[cover]
    room = [(0, most - side) for most, side in zip(annotation.size, other.size, strict=True)]
    return pixels, _joined([_covered(annotation, np.pad(cover, room)), take(other, chosen)])


def _shape(annotation: Annotation, i: int) -> Bool[np.ndarray, "h w"] | None:
    """The pixels of an object by its segment; None where there are none."""
    segment = annotation.segments[i] if annotation.segments else None
    if segment is None:
        return None
    shape = segments.draw_segment(segment, annotation.boxes[i], annotation.size)
    return shape if shape.any() else None


def _covered(annotation: Annotation, cover: Bool[np.ndarray, "h w"]) -> Annotation:
    """What is known of a picture once a part of it is covered."""
    n = len(annotation.labels)
    boxes, left = annotation.boxes.copy(), np.ones(n)
    outlines = list(annotation.segments or [None] * n)
    for i in range(n):
        x1, y1 = np.floor(boxes[i, :2]).astype(int)
        x2, y2 = np.ceil(boxes[i, 2:]).astype(int)
        under = cover[y1:y2, x1:x2]
        if not under.any():
            continue
        shape = _shape(annotation, i)
        if shape is None:
            left[i] = 1 - under.mean()
            continue
        seen = shape & ~cover
        left[i] = seen.sum() / shape.sum()
        outlines[i] = bitmap = segments.bitmap_of(seen)
        if left[i]:
            tight = segments.segment_box(bitmap)
            boxes[i, :2] = np.maximum(boxes[i, :2], tight[:2])
            boxes[i, 2:] = np.minimum(boxes[i, 2:], tight[2:])
    keypoints = annotation.keypoints
    if keypoints is not None:
        x, y, visible = np.moveaxis(keypoints, -1, 0)
        under = cover[y.astype(int), x.astype(int)] & (visible > HIDDEN)
        keypoints = np.stack([x, y, np.where(under, np.float32(HIDDEN), visible)], axis=-1)
    hardly = (left < MIN_AREA_LEFT) & ~annotation.crowd
    return take(
        annotation._replace(
            boxes=boxes,
            difficult=annotation.difficult | hardly,
            segments=annotation.segments and tuple(outlines),
            keypoints=keypoints,
        ),
        left > 0,
    )


def _shifted(annotation: Annotation, x: int, y: int) -> Annotation:
    outlines, keypoints = annotation.segments, annotation.keypoints
    if outlines is not None:
        outlines = tuple(s and segments.shift(s, x, y) for s in outlines)
    if keypoints is not None:
        offset = np.array([x, y, 0], np.float32)[None, None]
        keypoints = keypoints + offset * (keypoints[..., 2:] > 0)
    offset = np.array([x, y, x, y], np.float32)[None]
    return annotation._replace(
        boxes=annotation.boxes + offset, segments=outlines, keypoints=keypoints
    )


def _joined(parts: Sequence[Annotation]) -> Annotation:
    """The objects of all in one list, the rest of the first."""
    outlines = keypoints = None
    if any(part.segments is not None for part in parts):
        nothing = [(None,) * len(part.labels) for part in parts]
        outlines = sum((p.segments or none for p, none in zip(parts, nothing, strict=True)), ())
    known = [part.keypoints for part in parts if part.keypoints is not None]
    if known:
        n_keypoints = known[0].shape[1]
        keypoints = np.concatenate(
            [
                np.zeros((len(part.labels), n_keypoints, 3), np.float32)
                if part.keypoints is None
                else part.keypoints
                for part in parts
            ]
        )
    return parts[0]._replace(
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        difficult=np.concatenate([part.difficult for part in parts]),
        areas=None,
        segments=outlines,
        keypoints=keypoints,
    )
