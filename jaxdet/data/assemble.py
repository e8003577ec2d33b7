"""The objects that a reader found in a picture, to an `Annotation`: what all readers share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from jaxdet.data import reports
from jaxdet.data.records import Annotation, Segment, inside
from jaxdet.data.reports import Report

Box = tuple[float, float, float, float]

WHOLE = "Classes of pictures: boxes are the whole pictures'."  # A note for `whole`.

_FAR = 1e9  # px; float32 holds it, and no picture does.


class Found(NamedTuple):
    """One object."""

    where: str  # File and field, for messages.
    box: Box | Float32[np.ndarray, "4"]  # xyxy, 0-based, half-open; may reach beyond the picture.
    label: int  # 1..k.
    crowd: bool = False
    difficult: bool = False
    area: float | None = None  # Of the mask, px^2.
    segment: Segment | None = None
    keypoints: Float32[np.ndarray, "j 3"] | None = None


def assemble(
    image_id: int,
    name: str,
    size: tuple[int, int],
    objects: Sequence[Found],
    report: Report,
    *,
    n_keypoints: int = 0,
    captions: Sequence[str] = (),
) -> Annotation:
    """Joins the objects of a picture; clips boxes and leaves out those without area, which it says.

    Args:
      image_id: The data set's number of the picture.
      name: Of the picture, for messages.
      size: Its (height, width).
      objects: Those in it, in the data set's order.
      report: Gets the remarks.
      n_keypoints: j of the data set; without keypoints if 0.
      captions: Of the picture.

    Returns:
      The annotation.
    """
    stated = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    boxes, solid, clipped = inside(np.clip(stated, -_FAR, _FAR).astype(np.float32), size)
    for what, rows in ((reports.EMPTY, ~solid), (reports.CLIPPED, clipped)):
        for row in np.flatnonzero(rows).tolist():
            report.remark(what, objects[row].where)
    kept = [o for o, keep in zip(objects, solid, strict=True) if keep]
    return Annotation(
        image_id=image_id,
        name=name,
        size=size,
        boxes=boxes[solid],
        labels=np.array([o.label for o in kept], np.int32),
        crowd=np.array([o.crowd for o in kept], bool),
        difficult=np.array([o.difficult for o in kept], bool),
        areas=_areas(kept, boxes[solid]),
        segments=tuple(o.segment for o in kept) if any(o.segment for o in objects) else None,
        keypoints=_keypoints(kept, size, n_keypoints, report) if n_keypoints else None,
        captions=tuple(captions),
    )


def whole(where: str, size: tuple[int, int], label: int) -> Found:
    """A picture as an object.

    Args:
      where: For messages.
      size: (height, width) of the picture.
      label: 1..k.
    """
    return Found(where, (0.0, 0.0, float(size[1]), float(size[0])), label)


def _areas(
    objects: Sequence[Found], boxes: Float32[np.ndarray, "n 4"]
) -> Float32[np.ndarray, " n"] | None:
    if all(o.area is None for o in objects):
        return None
    own = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float32)
    known = [a if o.area is None else o.area for o, a in zip(objects, own, strict=True)]
    return np.clip(np.array(known, np.float64), 0, _FAR).astype(np.float32)


def _keypoints(
    objects: Sequence[Found], size: tuple[int, int], n_keypoints: int, report: Report
) -> Float32[np.ndarray, "n j 3"]:
    nothing = np.zeros((n_keypoints, 3), np.float32)
    points = np.array([nothing if o.keypoints is None else o.keypoints for o in objects])
    points = points.reshape(-1, n_keypoints, 3).astype(np.float32)
    limit = np.array([size[1], size[0]], np.float32)[None, None]
    labelled = points[..., 2] > 0
    lost = labelled & ~np.all((points[..., :2] >= 0) & (points[..., :2] < limit), axis=-1)
    for row, j in np.argwhere(lost).tolist():
        report.remark(reports.KEYPOINTS_OUTSIDE, f"{objects[row].where}.keypoints[{j}]")
    return np.where((labelled & ~lost)[..., None], points, 0)
