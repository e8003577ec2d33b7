"""From pictures with boxes to those of one object, or with joints: to classify, to localize."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from jaxdet.data import sources
from jaxdet.data.assemble import assemble, whole
from jaxdet.data.records import Source
from jaxdet.data.reports import Report
from jaxdet.data.transforms import Window


def with_count(source: Source, count: int) -> Source:
    """The pictures with this many objects, all of which count: no crowds or difficult objects.

    Args:
      source: Annotated pictures.
      count: Above 0.
    """
    kept = [
        index
        for index, a in enumerate(source.annotations)
        if len(a.labels) == count and a.objects.all()
    ]
    objects = f"{count} object{'s' if count > 1 else ''}"
    if count < 1 or not kept:
        raise ValueError(
            f"{source.name}: holds no picture of exactly {objects}, none of them difficult. "
            "--n-objects must be another number."
        )
    note = f"With {objects}: {len(kept)} of {len(source)} pictures."
    return sources.select(source, kept, name=source.name, note=note)


def with_joints(source: Source) -> tuple[Source, list[int]]:
    """The pictures in which a joint of an object that counts is labelled.

    Args:
      source: Annotated pictures.

    Returns:
      The source, and the numbers of its pictures in the one given.

    Raises:
      ValueError: Where there is no such picture.
    """
    kept = [
        i
        for i, a in enumerate(source.annotations)
        if a.keypoints is not None and (a.keypoints[a.objects, :, 2] > 0).any()
    ]
    if not kept:
        raise ValueError(f"{source.name}: holds no picture with a labelled keypoint.")
    return sources.select(source, kept, name=source.name), kept


def crops(source: Source, *, context: float = 0.0, min_side: float = 8.0) -> Source:
    """A picture of each object that counts, cut out of its own.

    Args:
      source: Annotated pictures.
      context: How much is seen around the object, in its sides, >= 0; cut at the picture's border.
      min_side: Objects with a smaller side are left out, pixels, >= 1.

    Returns:
      The source; a picture's only object is the picture, and image ids are 1, 2, ...
    """
    if context < 0 or min_side < 1:
        raise ValueError(f"context must be >= 0, min_side >= 1. Got {context} and {min_side}.")
    pictures, windows, annotations = [], [], []
    for index, a in enumerate(source.annotations):
        sides = (a.boxes[:, 2:] - a.boxes[:, :2]).min(axis=1, initial=np.inf)
        for row in np.flatnonzero(a.objects & (sides >= min_side)).tolist():
            window = _window(a.boxes[row], a.size, context)
            size = (window[2] - window[0], window[3] - window[1])
            name = f"{a.name}, object {row + 1}"
            found = [whole(name, size, int(a.labels[row]))]
            pictures.append(index)
            windows.append(window)
            annotations.append(assemble(len(pictures), name, size, found, Report()))
    if not pictures:
        raise ValueError(f"{source.name}: holds no object to cut out.")
    note = f"Objects cut out, with {context:g} of their sides around them: {len(pictures)}."
    return Source(
        name=source.name,
        classes=source.classes,
        annotations=tuple(annotations),
        read=functools.partial(_read, source.read, tuple(pictures), tuple(windows)),
        category_ids=source.category_ids,
        notes=(*source.notes, note),
    )


def _window(box: np.ndarray, size: tuple[int, int], context: float) -> Window:
    """Whole pixels around a box and its context, inside the picture."""
    x1, y1, x2, y2 = map(float, box)
    right, down = context * (x2 - x1), context * (y2 - y1)
    return (
        max(0, math.floor(y1 - down)),
        max(0, math.floor(x1 - right)),
        min(size[0], math.ceil(y2 + down)),
        min(size[1], math.ceil(x2 + right)),
    )


def _read(
    read: Callable[[int], np.ndarray],
    pictures: Sequence[int],
    windows: Sequence[Window],
    index: int,
) -> UInt8[np.ndarray, "h w 3"]:
    y1, x1, y2, x2 = windows[index]
    return read(pictures[index])[y1:y2, x1:x2].copy()  # A view would keep the whole picture.
