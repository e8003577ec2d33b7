"""Folders of pictures by class, to a `Source`.

    cat/a.jpg  dog/b.jpg      train/cat/a.jpg  train/dog/b.jpg  val/cat/c.jpg   (as ImageNet)

A picture's only object is the picture: its box is that of the whole. Pictures are turned as their
EXIF data says.
"""

import pathlib
from collections.abc import Mapping, Sequence

from jaxdet.data import splits
from jaxdet.data.assemble import WHOLE, assemble, whole
from jaxdet.data.pictures import SUFFIXES, PictureFiles, read_header
from jaxdet.data.records import Annotation, DataError, Source
from jaxdet.data.reports import Report, reporting

Folders = dict[pathlib.Path, list[pathlib.Path]]


def find_folders(root: pathlib.Path) -> dict[str, Folders]:
    """The pictures of each class's folder, of each part of the set.

    Args:
      root: With a folder for each class, or with one for each part ("train", "val", ...) that has
        those of the classes.

    Returns:
      Sorted pictures by folder, by part; one part, "all", where folders are not named for parts.
    """
    inner = _by_folder(root)
    parts: dict[str, Folders] = {}
    others = []
    for folder, pictures in inner.items():
        part = splits.split_of(folder.name)
        if part is None or any(picture.parent == folder for picture in pictures):
            others.append(folder.name)
            continue
        if part in parts:
            raise DataError(f"{folder}: is not the only folder for {part!r}. Move one elsewhere.")
        parts[part] = {}
        for picture in pictures:
            inside = folder / picture.relative_to(folder).parts[0]
            parts[part].setdefault(inside, []).append(picture)
    if parts and others:
        raise DataError(
            f"{root}: {', '.join(parts)} are parts with folders of classes, but "
            f"{', '.join(others)} are not. Move these elsewhere."
        )
    return parts or ({"all": inner} if inner else {})


def _by_folder(root: pathlib.Path) -> Folders:
    """The pictures of each folder that has any, at any depth."""
    found = {}
    for folder in sorted(f for f in root.iterdir() if f.is_dir()):
        if folder.name.startswith((".", "__MACOSX")):
            continue
        pictures = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
        if pictures:
            found[folder] = pictures
    return found


def class_names(parts: Mapping[str, Folders]) -> tuple[str, ...]:
    """The names of the folders of all parts, sorted."""
    return tuple(sorted({folder.name for folders in parts.values() for folder in folders}))


def read_folders(
    name: str,
    folders: Folders,
    *,
    classes: Sequence[str],
    report: Report | None = None,
) -> Source:
    """Reads the sizes of pictures.

    Args:
      name: What messages call the source.
      folders: Pictures by folder.
      classes: Names of labels 1, 2, ...
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source; image ids are 1, 2, ... in order.
    """
    with reporting(report) as report:
        good: dict[pathlib.Path, Annotation] = {}
        number = 0
        for folder, files in folders.items():
            if folder.name not in classes:
                report.fault(f"{folder}: is none of the classes {', '.join(classes)}. Rename it.")
                report.bad.update(files)
                continue
            label = list(classes).index(folder.name) + 1
            for file in files:
                number += 1
                with report.noting(picture=file):
                    size, where = read_header(file).upright, str(file.relative_to(folder.parent))
                    good[file] = assemble(number, where, size, [whole(where, size, label)], report)
        return Source(
            name=name,
            classes=tuple(classes),
            annotations=tuple(good.values()),
            read=PictureFiles(tuple(good), upright=True),
            notes=(WHOLE, *report.notes()),
        )
