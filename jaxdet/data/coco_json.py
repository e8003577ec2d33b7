"""COCO JSON with its pictures, to a `Source`.

Boxes come as (x, y, width, height), 0-based floats. Category ids may be sparse; labels 1..k follow
the order of the ids, and the ids are kept for writing results. Crowd regions are boxes here, so
their run lengths need no decoding.
"""

import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data.pictures import PictureFiles
from jaxdet.data.records import Annotation, DataError, Source, inside, tidy_notes

# How far around the JSON its pictures are looked for.
MAX_DEPTH = 3
MAX_FOLDERS = 500


class _Object(NamedTuple):
    """One annotation, checked."""

    box: tuple[float, float, float, float]  # x, y, width, height.
    label: int
    crowd: bool
    area: float  # Of the mask; of the box if the file does not say.


def read_coco(
    path: pathlib.Path,
    *,
    classes: Sequence[str] | None = None,
    images: pathlib.Path | None = None,
) -> Source:
    """Reads a COCO instances file.

    Args:
      path: The JSON file.
      classes: Names of labels 1, 2, ...; those of the file in order of their ids if None.
      images: Folder of the pictures; looked for around the JSON if None.

    Returns:
      All images of the file, those without annotations included.

    Source:
      https://cocodataset.org/#format-data
    """
    data = _load(path)
    names = _categories(path, data["categories"])
    classes = tuple(classes or (names[key] for key in sorted(names)))
    labels = {key: classes.index(name) + 1 for key, name in names.items() if name in classes}
    headers = list(_headers(path, data["images"]))
    known = {header.image_id for header in headers}
    objects = _objects(path, data["annotations"], known, names, labels)
    annotations, empty, n_clipped = [], [], 0
    for header in headers:
        annotation, n_empty, clipped = _annotation(header, objects[header.image_id])
        annotations.append(annotation)
        empty += [header.name] * n_empty
        n_clipped += clipped
    return Source(
        name=str(path),
        classes=classes,
        annotations=tuple(annotations),
        read=PictureFiles(_find_pictures(path, headers, images)),
        category_ids=_category_ids(classes, names),
        notes=tidy_notes(empty, n_clipped),
    )


class _Header(NamedTuple):
    """One row of `images`, checked."""

    image_id: int
    name: str
    size: tuple[int, int]
    where: str  # For messages.


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}). Write the file again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f"{path}: has no list '{key}', so it is no COCO instances file.")
    return data


def _get(row: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a row, of the right type."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        names = kind.__name__ if isinstance(kind, type) else "number"
        found = "is missing" if value is None else f"= {value!r} is no {names}"
        raise DataError(f"{where}.{key} {found}. Write a {names} there.")
    return value


def _categories(path: pathlib.Path, rows: list[Any]) -> dict[int, str]:
    """Names by category id."""
    names: dict[int, str] = {}
    for number, row in enumerate(rows):
        where = f"{path}: categories[{number}]"
        key, name = _get(row, "id", int, where), _get(row, "name", str, where)
        if key in names or name in names.values():
            raise DataError(f"{where}: id {key} or name '{name}' is taken already. Make it unique.")
        names[key] = name
    return names


def _category_ids(classes: Sequence[str], names: dict[int, str]) -> tuple[int, ...]:
    """The file's id of each class; unused numbers for classes that it does not have."""
    ids = {name: key for key, name in names.items()}
    unused = max([0, *names]) + 1
    return tuple(ids.get(name, unused + number) for number, name in enumerate(classes))


def _headers(path: pathlib.Path, rows: list[Any]) -> Iterator[_Header]:
    taken = set()
    for number, row in enumerate(rows):
        where = f"{path}: images[{number}]"
        image_id, name = _get(row, "id", int, where), _get(row, "file_name", str, where)
        height, width = _get(row, "height", int, where), _get(row, "width", int, where)
        if min(height, width) < 1:
            raise DataError(f"{where}: height {height} and width {width} must be >= 1.")
        if image_id in taken:
            raise DataError(f"{where}.id = {image_id} is taken already. Make image ids unique.")
        taken.add(image_id)
        yield _Header(image_id, name, (height, width), where)


def _objects(
    path: pathlib.Path,
    rows: list[Any],
    image_ids: set[int],
    names: dict[int, str],
    labels: dict[int, int],
) -> defaultdict[int, list[_Object]]:
    """Checked annotations by image id."""
    objects = defaultdict(list)
    for number, row in enumerate(rows):
        where = f"{path}: annotations[{number}]"
        image_id = _get(row, "image_id", int, where)
        category_id = _get(row, "category_id", int, where)
        if image_id not in image_ids:
            raise DataError(f"{where}.image_id = {image_id} is no image's id. Add it to images.")
        if category_id not in labels:
            known = f"'{names[category_id]}'" if category_id in names else "not in categories"
            raise DataError(
                f"{where}.category_id = {category_id} is {known}, no class of {sorted(labels)} "
                f"({', '.join(names[key] for key in sorted(labels))}). Correct the id, or train "
                "and evaluate with the same categories."
            )
        box = _box(_get(row, "bbox", list, where), where)
        area = _get({"area": row.get("area", box[2] * box[3])}, "area", (int, float), where)
        crowd = bool(row.get("iscrowd", 0))
        objects[image_id].append(_Object(box, labels[category_id], crowd, area))
    return objects


def _box(values: list[Any], where: str) -> tuple[float, float, float, float]:
    numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if len(values) != 4 or len(numbers) != 4:
        raise DataError(
            f"{where}.bbox = {values} must be 4 finite numbers: x, y, width, height. Correct it."
        )
    x, y, width, height = map(float, numbers)
    return x, y, width, height


def _annotation(header: _Header, objects: list[_Object]) -> tuple[Annotation, int, int]:
    """The image's annotation; counts of objects without area and of clipped ones."""
    xywh = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes, solid, clipped = inside(corners.astype(np.float32), header.size)
    annotation = Annotation(
        image_id=header.image_id,
        name=header.name,
        size=header.size,
        boxes=boxes[solid],
        labels=np.array([o.label for o in objects], np.int32)[solid],
        crowd=np.array([o.crowd for o in objects], bool)[solid],
        difficult=np.zeros(int(solid.sum()), bool),
        areas=np.array([o.area for o in objects], np.float32)[solid],
    )
    return annotation, int((~solid).sum()), int(clipped.sum())


def _find_pictures(
    path: pathlib.Path, headers: list[_Header], images: pathlib.Path | None
) -> tuple[pathlib.Path, ...]:
    """Where each image's file is."""
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: is no folder, so it holds no pictures of {path}.")
    roots = [images] if images is not None else [path.parent, path.parent.parent]
    folders: list[pathlib.Path] = []
    found = []
    for header in headers:
        here = _holding(header, folders, path)
        while here is None and roots:
            folders += [f for f in _folders(roots.pop(0)) if f not in folders]
            here = _holding(header, folders, path)
        if here is None:
            raise DataError(
                f"{header.where}.file_name = '{header.name}': there is no such picture in "
                f"{images or path.parent} or its sub folders. Put it there, or name the folder "
                "of the pictures."
            )
        found.append(here / header.name)
    return tuple(found)


def _holding(
    header: _Header, folders: list[pathlib.Path], path: pathlib.Path
) -> pathlib.Path | None:
    """The folder that has the image; one with the JSON's name (train2017) before all others."""
    for folder in folders:
        if folder.name in path.stem and (folder / header.name).is_file():
            return folder
    holding = [folder for folder in folders if (folder / header.name).is_file()]
    if len(holding) > 1:
        raise DataError(
            f"{header.where}.file_name = '{header.name}' is both in {holding[0]} and in "
            f"{holding[1]}. Name the folder of the pictures."
        )
    return holding[0] if holding else None


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The folder and its sub folders, nearest first, not too far and not too many."""
    level, folders = [root], [root]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.name.startswith(".")
        ][:MAX_FOLDERS]
        folders += level
    return folders[:MAX_FOLDERS]
