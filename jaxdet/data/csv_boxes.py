"""Boxes in a CSV file, a row an object, to a `Source`.

The first row names the columns, in any order and case; other columns are left alone:

    picture, x1, y1, x2, y2, class [, width, height]

Boxes are pixels, 0-based and half-open (x2 - x1 is the width); width and height are the picture's.
A picture without objects has one row with its box and class empty.
"""

import csv
import io
import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxdet.data.assemble import Box, Found, assemble
from jaxdet.data.fields import short
from jaxdet.data.find_pictures import find_pictures
from jaxdet.data.pictures import PictureFiles, read_header
from jaxdet.data.records import DataError, Source, check_size
from jaxdet.data.reports import Report, reporting

# How the columns may be called, without case, blanks and signs.
SPELLINGS = {
    "picture": ("picture", "image", "filename", "file", "path", "img", "imagepath", "imagename"),
    "x1": ("x1", "xmin", "left"),
    "y1": ("y1", "ymin", "top"),
    "x2": ("x2", "xmax", "right"),
    "y2": ("y2", "ymax", "bottom"),
    "class": ("class", "label", "classname", "category", "name"),
    "width": ("width", "imagewidth", "w"),
    "height": ("height", "imageheight", "h"),
}
NEEDED = tuple(SPELLINGS)[:6]
SIDES = ("x1", "y1", "x2", "y2")


class _Row(NamedTuple):
    """One object, checked."""

    where: str
    box: Box
    name: str


class _Picture(NamedTuple):
    """What the rows of a picture say."""

    where: str
    size: tuple[int, int] | None  # Where it is stated.
    objects: list[_Row]


def is_csv(path: pathlib.Path) -> bool:
    """Whether the first row of a file has the columns that are needed."""
    try:
        return bool(_read_rows(path))
    except DataError:
        return False


def class_names(paths: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The classes that occur in some files, sorted."""
    rows = [row for path in paths for row in _read_rows(path)]
    return tuple(sorted({row["class"] for row in rows if row["class"]}))


def read_csv(
    path: pathlib.Path,
    *,
    classes: Sequence[str] | None = None,
    images: pathlib.Path | None = None,
    report: Report | None = None,
) -> Source:
    """Reads a CSV file.

    Args:
      path: The file.
      classes: Names of labels 1, 2, ...; if None, those found, sorted.
      images: Folder of the pictures; looked for around the file if None.
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source; image ids are 1, 2, ... in the order in which pictures first occur.
    """
    with reporting(report) as report:
        known = tuple(classes or class_names([path]))
        pictures = _pictures(path, known, report)
        wanted = [(name, f"{picture.where}.picture") for name, picture in pictures.items()]
        files = find_pictures(path, wanted, report, images=images)
        annotations, found = [], []
        for number, ((name, picture), file) in enumerate(
            zip(pictures.items(), files, strict=True), start=1
        ):
            with report.noting(picture=name):
                if file is None or name in report.bad:
                    report.bad.add(name)
                    continue
                if file in found:
                    raise DataError(f"{picture.where}.picture = {name!r} is there by two names.")
                size = picture.size or read_header(file).size
                objects = [
                    Found(row.where, row.box, known.index(row.name) + 1) for row in picture.objects
                ]
                annotations.append(assemble(number, name, size, objects, report))
                found.append(file)
        return Source(
            name=str(path),
            classes=known,
            annotations=tuple(annotations),
            read=PictureFiles(tuple(found)),
            notes=report.notes(),
        )


def _read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows by our names of the columns; `line` is where a row is."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV ({error}). Write it again.") from error
    header = [re.sub("[^a-z0-9]", "", word.lower()) for word in lines[0]] if lines else []
    places = {}
    for column, spellings in SPELLINGS.items():
        present = [spelling for spelling in spellings if spelling in header]
        if present:
            places[column] = header.index(present[0])
    missing = [column for column in NEEDED if column not in places]
    if missing:
        raise DataError(
            f"{path}: line 1 must name the columns {', '.join(NEEDED)}: no {', '.join(missing)}."
        )
    return [
        {c: line[at].strip() if at < len(line) else "" for c, at in places.items()}
        | {"line": str(number)}
        for number, line in enumerate(lines[1:], start=2)
        if any(line)
    ]


def _pictures(path: pathlib.Path, classes: Sequence[str], report: Report) -> dict[str, _Picture]:
    pictures: dict[str, _Picture] = {}
    for row in _read_rows(path):
        where, name = f"{path}: line {row['line']}", row["picture"]
        with report.noting(picture=name):
            if not name:
                raise DataError(f"{where}: picture is empty. Write its file name.")
            picture = pictures.setdefault(name, _Picture(where, _size(row, where), []))
            if any(row[column] for column in (*SIDES, "class")):
                x1, y1, x2, y2 = (_number(row, side, where) for side in SIDES)
                if row["class"] not in classes:
                    raise DataError(
                        f"{where}: class = {short(row['class'])} is none of the classes "
                        f"{', '.join(classes)}. Correct it."
                    )
                picture.objects.append(_Row(where, (x1, y1, x2, y2), row["class"]))
    return pictures


def _size(row: dict[str, str], where: str) -> tuple[int, int] | None:
    if not row.get("width") or not row.get("height"):
        return None
    size = round(_number(row, "height", where)), round(_number(row, "width", where))
    return check_size(size, where)


def _number(row: dict[str, str], column: str, where: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {column} = {short(row[column])} is no finite number.")
    return value
