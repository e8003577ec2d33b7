"""PASCAL VOC XML with its pictures, to a `Source`.

VOC's boxes are 1-based whole pixels and include both ends; (x1 - 1, y1 - 1, x2, y2) is the same box
0-based and half-open.
"""

import math
import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdet.data.pictures import SUFFIXES, PictureFiles
from jaxdet.data.records import Annotation, DataError, Source, inside, tidy_notes


class Pair(NamedTuple):
    """An annotation file and its picture."""

    xml: pathlib.Path
    picture: pathlib.Path


class _File(NamedTuple):
    """One XML file, checked."""

    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]  # As they stand: 1-based, both ends included.
    names: list[str]
    difficult: list[bool]


def read_voc(name: str, pairs: Sequence[Pair], *, classes: Sequence[str] | None = None) -> Source:
    """Reads annotation files and pairs them with their pictures.

    Args:
      name: What messages call the source.
      pairs: The files, in the order that the source will have.
      classes: Names of labels 1, 2, ...; if None, those found, sorted.

    Returns:
      The source; image ids are 1, 2, ... in order, as VOC has no numbers.

    Source:
      PASCAL VOC 2007 development kit, section 3 (annotation format).
    """
    files = [_read_xml(pair.xml) for pair in pairs]
    classes = tuple(classes or sorted({name for file in files for name in file.names}))
    annotations, empty, n_clipped = [], [], 0
    for number, (pair, file) in enumerate(zip(pairs, files, strict=True), start=1):
        annotation, n_empty, clipped = _annotation(number, pair, file, classes)
        annotations.append(annotation)
        empty += [pair.xml.name] * n_empty
        n_clipped += clipped
    return Source(
        name=name,
        classes=classes,
        annotations=tuple(annotations),
        read=PictureFiles(tuple(pair.picture for pair in pairs)),
        notes=tidy_notes(empty, n_clipped),
    )


def class_names(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The classes that occur in annotation files, sorted."""
    return tuple(sorted({name for path in files for name in _read_xml(path).names}))


def pair_listed(root: pathlib.Path, names: Sequence[str]) -> list[Pair]:
    """The files of a folder with `Annotations` and `JPEGImages`, by their names without suffix."""
    pictures = _pictures_by_stem(root / "JPEGImages")
    pairs = []
    for name in names:
        xml = root / "Annotations" / f"{name}.xml"
        if not xml.is_file():
            raise DataError(f"{xml}: there is no such file. Add it or take it out of the list.")
        pairs.append(_pair(xml, pictures, root / "JPEGImages"))
    return pairs


def pair_side_by_side(folder: pathlib.Path) -> tuple[list[Pair], list[pathlib.Path]]:
    """Annotation files beside their pictures, and the pictures that have none."""
    pictures = _pictures_by_stem(folder)
    pairs = [_pair(xml, pictures, folder) for xml in sorted(folder.glob("*.xml"))]
    paired = {pair.picture for pair in pairs}
    return pairs, [picture for picture in pictures.values() if picture not in paired]


def _pair(xml: pathlib.Path, pictures: dict[str, pathlib.Path], folder: pathlib.Path) -> Pair:
    if xml.stem not in pictures:
        raise DataError(f"{xml}: its picture {xml.stem}.jpg (or .png) is not in {folder}. Add it.")
    return Pair(xml, pictures[xml.stem])


def _pictures_by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    pictures: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in pictures:
                raise DataError(f"{path}: {pictures[path.stem].name} has the same name. Keep one.")
            pictures[path.stem] = path
    return pictures


def _read_xml(path: pathlib.Path) -> _File:
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise DataError(f"{path}: is not readable XML ({error}). Write the file again.") from error
    height, width = (_number(root, f"size/{side}", path) for side in ("height", "width"))
    if min(height, width) < 1:
        raise DataError(
            f"{path}: size is {height:g} x {width:g}. Write the picture's height and width."
        )
    boxes, names, difficult = [], [], []
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        x1, y1, x2, y2 = (
            _number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        boxes.append((x1, y1, x2, y2))
        names.append(_text(item, "name", where))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return _File((round(height), round(width)), boxes, names, difficult)


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
        raise DataError(f"{where}: {field} = '{text}' is no finite number. Correct it.")
    return value


def _annotation(
    image_id: int, pair: Pair, file: _File, classes: Sequence[str]
) -> tuple[Annotation, int, int]:
    """The picture's annotation; counts of objects without area and of clipped ones."""
    for number, name in enumerate(file.names, start=1):
        if name not in classes:
            raise DataError(
                f"{pair.xml}: object {number}: name = '{name}' is none of the classes "
                f"{', '.join(classes)}. Correct it or add the class."
            )
    stated = np.array(file.boxes, np.float32).reshape(-1, 4)
    boxes, solid, clipped = inside(stated - np.array([[1, 1, 0, 0]], np.float32), file.size)
    # Both ends are included, so equal ends are one pixel; but that is what a stray click leaves.
    solid &= np.all(stated[:, 2:] > stated[:, :2], axis=1)
    labels = np.array([classes.index(name) + 1 for name in file.names], np.int32)
    annotation = Annotation(
        image_id=image_id,
        name=pair.picture.name,
        size=file.size,
        boxes=boxes[solid],
        labels=labels[solid],
        crowd=np.zeros(int(solid.sum()), bool),
        difficult=np.array(file.difficult, bool)[solid],
    )
    return annotation, int((~solid).sum()), int((clipped & solid).sum())
