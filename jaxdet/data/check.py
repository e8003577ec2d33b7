"""All that is wrong or odd in a data set, with file and field, and what is in it."""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import layouts, pictures
from jaxdet.data.records import DataError, Source
from jaxdet.data.reports import Report
from jaxdet.data.sources import MAX_DECODED, find_bad_pictures

TURNED = "Pictures that EXIF data want turned, taken as they are stored"
UPRIGHT = "Pictures that are turned as their EXIF data says"
DARK = "Grey 16-bit pictures that use few values and come out nearly black: stretch them first"
DOUBTS = "JPEG files that may be damaged: look at them"
SAME_PICTURE = "Pictures that are there twice"
SAME_OBJECT = "Objects that are there twice, same class and same box"
MODES = {
    "L": "Grey pictures, read as RGB",
    "1": "Black and white pictures, read as RGB",
    "P": "Pictures with a palette, read as RGB",
    "LA": "Pictures with transparency, which is left out",
    "PA": "Pictures with transparency, which is left out",
    "RGBA": "Pictures with transparency, which is left out",
    "CMYK": "CMYK pictures, read as RGB",
    "I;16": "16-bit pictures, read as 8-bit RGB",
    "I;16B": "16-bit pictures, read as 8-bit RGB",
}
OTHER_MODE = "Pictures of other kinds, read as 8-bit RGB"
DARK_BELOW = 32  # Of 255: cameras of 12 bits fill a sixteenth of the values.
# COCO's: sides of the square with the area, pixels.
SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, np.inf)}


class Checked(NamedTuple):
    """What was found in a part of a data set."""

    source: Source | None  # What can be read, pictures with faults left out; None if nothing can.
    report: Report


def check_data(
    path: pathlib.Path,
    *,
    format: str | None = None,
    images: pathlib.Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Checked]:
    """Reads every annotation and opens every picture of every part.

    Args:
      path: As in `sources.open_folder`.
      format: Likewise.
      images: Likewise.
      progress: Called with the part, how many looks at its pictures are done, and how many there
        are: each picture is decoded, and then its file looked at.

    Returns:
      By the parts' names, what was found; with faults of the whole set at each.
    """
    names = layouts.find_parts(path, layouts.Options(Report(), None, images), format=format)
    checked: dict[str, Checked] = {}
    seen: dict[bytes, tuple[str, str]] = {}
    for part in names:
        report, source = Report(), None
        with report.noting():
            options = layouts.Options(report, None, images)
            source = layouts.find_parts(path, options, format=format)[part]()
            if not len(source) and not report.faults:
                raise DataError(f"{source.name}: holds no images.")
        if source is not None:

            def show(done: int, part: str = part, n: int = len(source), before: int = 0) -> None:
                if progress:
                    progress(part, before + done, 2 * n)

            for text in find_bad_pictures(source, progress=show).values():
                report.fault(text)
            _remark_objects(source, report)
            again = functools.partial(show, before=len(source))
            _remark_pictures(source, part, report, seen, progress=again)
        checked[part] = Checked(source, report)
    return checked


def count_table(source: Source) -> str:
    """How many objects of each class and size there are, as lines of text."""
    labels = np.concatenate([np.zeros(0, int), *(a.labels for a in source.annotations)])
    boxes = np.concatenate([np.zeros((0, 4)), *(a.boxes for a in source.annotations)])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    in_size = {name: (sides >= low) & (sides < high) for name, (low, high) in SIZES.items()}
    width = max(map(len, [*source.classes, "class"]))
    heads = ("objects", *SIZES, "pictures")
    lines = [f"{'class':{width}}" + "".join(f"{head:>10}" for head in heads)]
    for label, name in enumerate(source.classes, start=1):
        own = labels == label
        n_pictures = sum(label in a.labels for a in source.annotations)
        counts = (own.sum(), *((own & these).sum() for these in in_size.values()), n_pictures)
        lines.append(f"{name:{width}}" + "".join(f"{count:>10}" for count in counts))
    return "\n".join(lines)


def _remark_objects(source: Source, report: Report) -> None:
    for a in source.annotations:
        rows = np.column_stack([a.labels, np.round(a.boxes, 2)])
        _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
        for row in first[counts > 1].tolist():
            box = ", ".join(f"{v:g}" for v in a.boxes[row].tolist())
            report.remark(SAME_OBJECT, f"{a.name}: {source.classes[a.labels[row] - 1]} at {box}")


def _remark_pictures(
    source: Source,
    part: str,
    report: Report,
    seen: dict[bytes, tuple[str, str]],
    *,
    progress: Callable[[int], None],
) -> None:
    """What their headers say, and which are the same file; `seen` is over all parts."""
    read: Any = source.read
    look = functools.partial(_look, read, decode=len(source) <= MAX_DECODED)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, found in enumerate(pool.map(look, range(len(source)))):
            progress(index + 1)
            if found is None:  # A fault, and said already.
                continue
            where, (header, digest, doubt, dark) = read.where(index), found
            if doubt:
                report.remark(DOUBTS, f"{where}: {doubt}")
            if dark:
                report.remark(DARK, where)
            if header.orientation > 1:
                report.remark(UPRIGHT if getattr(read, "upright", False) else TURNED, where)
            if header.mode != "RGB":
                report.remark(MODES.get(header.mode, OTHER_MODE), where)
            other, other_part = seen.setdefault(digest, (where, part))
            same = other == where and (other_part == part or "trainval" in (part, other_part))
            if not same:
                report.remark(SAME_PICTURE, f"{where}, and in {other_part}: {other}")


class _Looks(NamedTuple):
    """Of one picture."""

    header: pictures.Header
    digest: bytes
    doubt: str | None  # What a decoder says against it.
    dark: bool


def _look(read: Any, index: int, *, decode: bool) -> _Looks | None:
    """What a picture's file says; its pixels only if they are decoded. None if it has a fault."""
    where = read.where(index)
    try:
        data = read.encoded(index)
        header = pictures.parse_header(data, where)
        # Files of 16 bits often hold 12.
        deep = decode and header.mode.startswith("I;16")
        dark = deep and int(pictures.decode(data, where).max()) < DARK_BELOW
    except DataError:
        return None
    doubt = pictures.doubts(data) if decode else None
    return _Looks(header, hashlib.blake2b(data).digest(), doubt, dark)
