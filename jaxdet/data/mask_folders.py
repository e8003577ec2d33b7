"""Folders with a PNG mask for each object, to a `Source`.

    images/a.jpg    masks/a/cat_1.png  masks/a/cat_2.png  masks/a/dog_1.png
    a/images/a.png  a/masks/6c0f.png   a/masks/9be2.png      (as in the Data Science Bowl 2018)

The class is what comes before the last `_` of a mask's name; where no name has one, all are of one
class, `object`. Pixels that are not black are the object's. Boxes are those around the masks.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxdet.data import segments
from jaxdet.data.assemble import Found, assemble
from jaxdet.data.pictures import SUFFIXES, PictureFiles, read_header, read_mask
from jaxdet.data.records import Annotation, Bitmap, DataError, Source, StoredBitmap
from jaxdet.data.reports import Report, reporting

UNMASKED = "Pictures without a folder of masks, left out"
NAMELESS = "object"
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})

_DEPTH = 3  # Folders above `masks`, and between it and the masks.


class Masked(NamedTuple):
    """A picture and its masks."""

    picture: pathlib.Path
    masks: tuple[pathlib.Path, ...]


def find_masked(root: pathlib.Path, report: Report) -> list[Masked]:
    """All pictures with a folder of masks below a folder, sorted; it may have none in it."""
    found = []
    for folder in _mask_folders(root):
        images = folder.parent / "images"
        if not images.is_dir():
            continue
        inner = list(_below(folder))
        loose = _files(folder, MASK_SUFFIXES)
        if loose or (not inner and len(_files(images, SUFFIXES)) == 1):
            with report.noting():
                found.append(Masked(_only_picture(images), tuple(loose)))
        for own in inner:
            masks = _files(own, MASK_SUFFIXES)
            if masks or not any(own.iterdir()):
                with report.noting():
                    found.append(Masked(_named(images, own.relative_to(folder)), tuple(masks)))
    folders = {masked.picture.parent for masked in found}
    pictures = {picture for folder in folders for picture in _files(folder, SUFFIXES)}
    for picture in sorted(pictures - {masked.picture for masked in found}):
        report.remark(UNMASKED, str(picture))
    return sorted(found)


def class_names(found: Sequence[Masked]) -> tuple[str, ...]:
    """The classes that the masks' names tell, sorted."""
    names = {_class_of(path) for masked in found for path in masked.masks} - {None}
    return tuple(sorted(str(name) for name in names)) or (NAMELESS,)


def read_masks(
    name: str,
    found: Sequence[Masked],
    *,
    classes: Sequence[str],
    report: Report | None = None,
) -> Source:
    """Reads the masks of pictures, for their boxes; they are read again when asked for.

    Args:
      name: What messages call the source.
      found: The files, in the order that the source will have.
      classes: Names of labels 1, 2, ...
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source; image ids are 1, 2, ... in order.
    """
    with reporting(report) as report:
        nameless = all(_class_of(path) is None for masked in found for path in masked.masks)
        annotations: dict[pathlib.Path, Annotation] = {}
        for number, masked in enumerate(found, start=1):
            with report.noting(picture=masked.picture):
                if masked.picture in annotations:
                    raise DataError(f"{masked.picture}: has two folders of masks. Join them.")
                size = read_header(masked.picture).size
                read = functools.partial(_object, size=size, nameless=nameless, classes=classes)
                objects = report.each(masked.picture, masked.masks, read)
                if masked.picture not in report.bad:
                    name_ = masked.picture.name
                    annotations[masked.picture] = assemble(number, name_, size, objects, report)
        return Source(
            name=name,
            classes=tuple(classes),
            annotations=tuple(annotations.values()),
            read=PictureFiles(tuple(annotations)),
            notes=report.notes(),
        )


def _object(
    path: pathlib.Path, *, size: tuple[int, int], nameless: bool, classes: Sequence[str]
) -> Found:
    name = (classes[0] if len(classes) == 1 else NAMELESS) if nameless else _class_of(path)
    if name is None:
        raise DataError(f"{path}: there is no class before a '_' in its name. Rename it.")
    if name not in classes:
        raise DataError(f"{path}: {name!r} is none of the classes {', '.join(classes)}. Rename it.")
    mask = read_mask(path)
    if mask.shape != size:
        raise DataError(
            f"{path}: the mask is {mask.shape[0]} x {mask.shape[1]} (height x width), its picture "
            f"{size[0]} x {size[1]}. Write it again."
        )
    box = segments.segment_box(Bitmap(mask, (0, 0)))
    segment = StoredBitmap(functools.partial(read_mask, path))
    label = classes.index(name) + 1
    return Found(str(path), box, label, area=float(np.sum(mask)), segment=segment)


def _class_of(path: pathlib.Path) -> str | None:
    return path.stem.rpartition("_")[0] or None


def _mask_folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for depth in range(_DEPTH + 1):
        yield from sorted(p for p in root.glob("*/" * depth + "masks") if p.is_dir())


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for depth in range(1, _DEPTH + 1):
        yield from sorted(p for p in folder.glob("/".join("*" * depth)) if p.is_dir())


def _files(folder: pathlib.Path, suffixes: frozenset[str]) -> list[pathlib.Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)


def _only_picture(images: pathlib.Path) -> pathlib.Path:
    pictures = _files(images, SUFFIXES)
    if len(pictures) != 1:
        raise DataError(
            f"{images}: has {len(pictures)} pictures for the masks beside it. Keep the one they "
            "are of, or give each picture a folder of masks with its name."
        )
    return pictures[0]


def _named(images: pathlib.Path, inner: pathlib.Path) -> pathlib.Path:
    """The picture with the name of a folder of masks."""
    folder = images / inner.parent
    names = [f"{inner.name}{suffix}" for suffix in sorted(SUFFIXES)]
    pictures = [folder / name for name in names if (folder / name).is_file()]
    if not pictures:  # On some systems these would be the same files again.
        capital = [f"{inner.name}{suffix.upper()}" for suffix in sorted(SUFFIXES)]
        pictures = [folder / name for name in capital if (folder / name).is_file()]
    if len(pictures) != 1:
        raise DataError(
            f"{folder / inner.name}: {len(pictures)} pictures have the name of the folder of "
            "masks. Keep one."
        )
    return pictures[0]
