"""PASCAL VOC XML with its pictures, to a `Source`.

VOC's boxes are 1-based whole pixels and include both ends; (x1 - 1, y1 - 1, x2, y2) is the same box
0-based and half-open.
"""

import contextlib
import functools
import math
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple

from jaxdet.data.assemble import Box, Found, assemble
from jaxdet.data.fields import short
from jaxdet.data.pictures import SUFFIXES, PictureFiles
from jaxdet.data.records import Annotation, DataError, Source, check_size
from jaxdet.data.reports import EMPTY, Report, reporting

PARTS = "Parts of objects (heads, hands, feet), not read"


class Pair(NamedTuple):
    """An annotation file and its picture."""

    xml: pathlib.Path
    picture: pathlib.Path


class _Object(NamedTuple):
    """One object, checked."""

    where: str
    stated: Box  # As it stands: 1-based, both ends included.
    name: str
    difficult: bool


class _File(NamedTuple):
    """One XML file, checked."""

    size: tuple[int, int]
    objects: list[_Object]
    n_parts: int


def read_voc(
    name: str,
    pairs: Sequence[Pair],
    *,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> Source:
    """Reads annotation files and pairs them with their pictures.

    Args:
      name: What messages call the source.
      pairs: The files, in the order that the source will have.
      classes: Names of labels 1, 2, ...; if None, those found, sorted.
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source; image ids are 1, 2, ... in order, as VOC has no numbers.

    Source:
      PASCAL VOC 2007 development kit, section 3 (annotation format).
    """
    with reporting(report) as report:
        files: dict[Pair, _File] = {}
        for pair in pairs:
            with report.noting(picture=pair.picture):
                if pair in files:
                    raise DataError(f"{pair.xml}: is listed twice. List it once.")
                files[pair] = _read_xml(pair.xml)
        found = {o.name for file in files.values() for o in file.objects}
        known = tuple(classes or sorted(found))
        good: dict[Pair, Annotation] = {}
        for number, (pair, file) in enumerate(files.items(), start=1):
            with report.noting(picture=pair.picture):
                annotation = _annotation(number, pair, file, known, report)
                if pair.picture not in report.bad:
                    good[pair] = annotation
        return Source(
            name=name,
            classes=known,
            annotations=tuple(good.values()),
            read=PictureFiles(tuple(pair.picture for pair in good)),
            notes=report.notes(),
        )


def class_names(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The classes that occur in annotation files, sorted; unreadable files are left out."""
    found = set()
    for path in files:
        with contextlib.suppress(DataError):
            found |= {o.name for o in _read_xml(path).objects}
    return tuple(sorted(found))


def pair_listed(root: pathlib.Path, names: Sequence[str], report: Report) -> list[Pair]:
    """The files of a folder with `Annotations` and `JPEGImages`, by their names without suffix."""
    pictures = _pictures_by_stem(root / "JPEGImages", report)
    pairs = []
    for name in names:
        xml = root / "Annotations" / f"{name}.xml"
        with report.noting(picture=xml):
            if not xml.is_file():
                raise DataError(f"{xml}: there is no such file. Add it or take it out of the list.")
            pairs.append(_pair(xml, pictures, root / "JPEGImages"))
    return pairs


def pair_side_by_side(
    folder: pathlib.Path, report: Report
) -> tuple[list[Pair], list[pathlib.Path]]:
    """Annotation files beside their pictures, and the pictures that have none."""
    pictures = _pictures_by_stem(folder, report)
    pairs = []
    for xml in sorted(folder.glob("*.xml")):
        with report.noting(picture=xml):
            pairs.append(_pair(xml, pictures, folder))
    paired = {pair.picture for pair in pairs}
    return pairs, [picture for picture in pictures.values() if picture not in paired]


def _pair(xml: pathlib.Path, pictures: dict[str, pathlib.Path], folder: pathlib.Path) -> Pair:
    if xml.stem not in pictures:
        raise DataError(f"{xml}: its picture {xml.stem}.jpg (or .png) is not in {folder}. Add it.")
    return Pair(xml, pictures[xml.stem])


def _pictures_by_stem(folder: pathlib.Path, report: Report) -> dict[str, pathlib.Path]:
    pictures: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            with report.noting():
                if path.stem in pictures:
                    raise DataError(f"{path}: {pictures[path.stem].name} has the same name.")
                pictures[path.stem] = path
    return pictures


def _read_xml(path: pathlib.Path) -> _File:
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError, LookupError, ValueError) as error:  # Encodings, too.
        raise DataError(f"{path}: is not readable XML ({error}). Write the file again.") from error
    height, width = (_number(root, f"size/{side}", path) for side in ("height", "width"))
    size = check_size((round(height), round(width)), f"{path}: size")
    objects, n_parts = [], 0
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        x1, y1, x2, y2 = (
            _number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        objects.append(_Object(where, (x1, y1, x2, y2), _text(item, "name", where), difficult))
        n_parts += len(item.findall("part"))
    return _File(size, objects, n_parts)


def _text(item: ET.Element, field: str, where: str | pathlib.Path) -> str:
    text = (item.findtext(field) or "").strip()
    if not text:
        raise DataError(f"{where}: {field} is missing or empty. Write it.")
    return text


def _number(item: ET.Element, field: str, where: str | pathlib.Path) -> float:
    text = _text(item, field, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {field} = {short(text)} is no finite number. Correct it.")
    return value


def _annotation(
    image_id: int, pair: Pair, file: _File, classes: Sequence[str], report: Report
) -> Annotation:
    read = functools.partial(_found, classes=classes)
    objects = []
    for item in report.each(pair.picture, file.objects, read):
        # Both ends are included, so equal ends are one pixel; but a stray click leaves that too.
        if item.box[2] - item.box[0] <= 1 or item.box[3] - item.box[1] <= 1:
            report.remark(EMPTY, item.where)
        else:
            objects.append(item)
    if file.n_parts:
        report.remark(PARTS, f"{pair.xml}: {file.n_parts}")
    return assemble(image_id, pair.picture.name, file.size, objects, report)


def _found(item: _Object, *, classes: Sequence[str]) -> Found:
    if item.name not in classes:
        raise DataError(
            f"{item.where}: name = {short(item.name)} is none of the classes "
            f"{', '.join(classes)}. Correct it or add the class."
        )
    x1, y1, x2, y2 = item.stated
    label = classes.index(item.name) + 1
    return Found(item.where, (x1 - 1, y1 - 1, x2, y2), label, difficult=item.difficult)
