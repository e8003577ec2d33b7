"""COCO JSON with its pictures, to a `Source`: boxes, masks, crowds, keypoints, captions.

Boxes come as (x, y, width, height), 0-based floats. Category ids may be sparse; labels 1..k follow
the order of the ids, and the ids are kept for writing results. Masks stay as they are written
until they are asked for.
"""

import itertools
import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data.assemble import Found, assemble
from jaxdet.data.coco_masks import parse_segmentation
from jaxdet.data.fields import field, numbers, read_json
from jaxdet.data.find_pictures import find_pictures
from jaxdet.data.pictures import PictureFiles
from jaxdet.data.records import DataError, Source, check_size
from jaxdet.data.reports import Report, reporting

MAX_KEYPOINTS = 1000  # Of an object; each object takes memory for all of them.
SAME_ID = "Annotations with an id that another one has, kept"


class _Image(NamedTuple):
    """One row of `images`, checked."""

    image_id: int
    name: str
    size: tuple[int, int]
    where: str  # For messages.


class _Categories(NamedTuple):
    """The table of categories, checked."""

    names: dict[int, str]  # By id.
    labels: dict[int, int]  # Likewise; those that are classes.
    keypoint_names: tuple[str, ...]


def read_coco(
    path: pathlib.Path,
    *,
    classes: Sequence[str] | None = None,
    images: pathlib.Path | None = None,
    report: Report | None = None,
) -> Source:
    """Reads a COCO file of instances, person keypoints or captions.

    Captions of instances or keypoints are looked for in the file beside it: those of
    `instances_val2017.json` are in `captions_val2017.json`.

    Args:
      path: The JSON file.
      classes: Names of labels 1, 2, ...; those of the file in order of their ids if None.
      images: Folder of the pictures; looked for around the JSON if None.
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      All images of the file, those without annotations included.

    Source:
      https://cocodataset.org/#format-data
    """
    with reporting(report) as report:
        data = _load(path)
        categories = _categories(path, data["categories"], classes, report)
        headers = _images(path, data["images"], report)
        objects, captions = _annotations(path, data["annotations"], headers, categories, report)
        for image_id, texts in _captions_beside(path).items():
            captions[image_id] += texts
        wanted = [(header.name, f"{header.where}.file_name") for header in headers.values()]
        files = find_pictures(path, wanted, report, images=images)
        annotations, found = [], []
        for header, file in zip(headers.values(), files, strict=True):
            if file is None or header.image_id in report.bad:
                report.bad.add(header.image_id)
                continue
            found.append(file)
            annotations.append(
                assemble(
                    header.image_id,
                    header.name,
                    header.size,
                    objects[header.image_id],
                    report,
                    n_keypoints=len(categories.keypoint_names),
                    captions=captions[header.image_id],
                )
            )
        labels = {label: key for key, label in categories.labels.items()}
        unused = max([0, *categories.names]) + 1
        names = classes or [categories.names[labels[i + 1]] for i in range(len(labels))]
        return Source(
            name=str(path),
            classes=tuple(names),
            annotations=tuple(annotations),
            read=PictureFiles(tuple(found)),
            category_ids=tuple(labels.get(i + 1, unused + i) for i in range(len(names))),
            notes=report.notes(),
            keypoint_names=categories.keypoint_names,
            keypoint_pairs=left_right_pairs(categories.keypoint_names),
        )


# What names of the left side have, and those of the right side in its place.
SIDES = (
    ("left", "right"),
    *((r"^l(?=[_ .-])", "r"), (r"(?<=[_ .-])l$", "r")),
    *((r"^L(?=[_ .-]|[A-Z][a-z])", "R"), (r"(?<=[_ .-])L$|(?<=[a-z])L$", "R")),
)


def left_right_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Indices of names that differ in "left" and "right" only; or in a first or last l and r."""
    found = set()
    for (left, right), fold in itertools.product(SIDES, (str, str.lower)):
        places = {fold(name): i for i, name in enumerate(names)}
        for name, i in places.items():
            other = places.get(re.sub(left, right, name), i)
            if other != i:
                found.add((min(i, other), max(i, other)))
    return tuple(sorted(found))


def _load(path: pathlib.Path) -> dict[str, Any]:
    data = read_json(path)
    tables = {"images": None, "annotations": None, "categories": None}
    if isinstance(data, dict):
        captions = isinstance(data.get("annotations"), list) and _are_captions(data["annotations"])
        tables |= {"categories": []} if captions and "categories" not in data else {}
        tables |= {key: data[key] for key in tables if key in data}
    for key, table in tables.items():
        if not isinstance(table, list):
            raise DataError(f"{path}: has no list '{key}', so it is no COCO file.")
    return tables


def _are_captions(rows: list[Any]) -> bool:
    return bool(rows) and isinstance(rows[0], dict) and "caption" in rows[0]


def _categories(
    path: pathlib.Path, rows: list[Any], classes: Sequence[str] | None, report: Report
) -> _Categories:
    names: dict[int, str] = {}
    keypoints: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows):
        where = f"{path}: categories[{number}]"
        with report.noting():
            key, name = field(row, "id", int, where), field(row, "name", str, where)
            if key in names or name in names.values():
                raise DataError(f"{where}: id {key} or name {name!r} is taken. Make it unique.")
            if row.get("keypoints"):
                joints = field(row, "keypoints", list, where)
                if len(joints) > MAX_KEYPOINTS:
                    raise DataError(f"{where}.keypoints are {len(joints)}: too many.")
                keypoints.add(tuple(str(joint) for joint in joints))
            names[key] = name
    if len(keypoints) > 1:
        raise DataError(f"{path}: categories differ in their keypoints. Keep those of one.")
    known = tuple(classes or (names[key] for key in sorted(names)))
    labels = {key: known.index(name) + 1 for key, name in names.items() if name in known}
    return _Categories(names, labels, next(iter(keypoints), ()))


def _images(path: pathlib.Path, rows: list[Any], report: Report) -> dict[int, _Image]:
    """The good rows, by id."""
    headers: dict[int, _Image] = {}
    names: dict[str, str] = {}
    for number, row in enumerate(rows):
        where = f"{path}: images[{number}]"
        image_id = row.get("id") if isinstance(row, dict) else None
        with report.noting(picture=image_id if isinstance(image_id, int) else None):
            image_id, name = field(row, "id", int, where), field(row, "file_name", str, where)
            size = field(row, "height", int, where), field(row, "width", int, where)
            if image_id in headers:
                raise DataError(f"{where}.id = {image_id} is taken already. Make ids unique.")
            if name in names:
                raise DataError(f"{where}.file_name = {name!r} is that of {names[name]} too.")
            names[name] = f"images[{number}]"
            headers[image_id] = _Image(image_id, name, check_size(size, where), where)
    return headers


_ByImage = tuple[defaultdict[int, list[Found]], defaultdict[int, list[str]]]


def _annotations(
    path: pathlib.Path,
    rows: list[Any],
    headers: dict[int, _Image],
    categories: _Categories,
    report: Report,
) -> _ByImage:
    """Objects and captions by image id."""
    objects, captions = defaultdict(list), defaultdict(list)
    seen: set[Any] = set()
    name = str(path)  # Once: there can be a million rows.
    for number, row in enumerate(rows):
        where = f"{name}: annotations[{number}]"
        image_id = row.get("image_id") if isinstance(row, dict) else None
        with report.noting(picture=image_id if isinstance(image_id, int) else None):
            image_id = field(row, "image_id", int, where)
            if image_id not in headers:
                if image_id in report.bad:  # Said already.
                    continue
                raise DataError(f"{where}.image_id = {image_id} is no image's id. Add the image.")
            if "caption" in row:
                captions[image_id].append(field(row, "caption", str, where))
                continue
            found = _object(row, headers[image_id].size, categories, where)
            objects[image_id].append(found)
            key = row.get("id")
            if isinstance(key, int | str):
                if key in seen:
                    report.remark(SAME_ID, f"{where}.id = {key}")
                seen.add(key)
    return objects, captions


def _object(row: Any, size: tuple[int, int], categories: _Categories, where: str) -> Found:
    category_id = field(row, "category_id", int, where)
    names, labels = categories.names, categories.labels
    if category_id not in labels:
        known = f"{names[category_id]!r}" if category_id in names else "not in categories"
        raise DataError(
            f"{where}.category_id = {category_id} is {known}, no class of {sorted(labels)} "
            f"({', '.join(names[key] for key in sorted(labels))}). Correct the id, or train "
            "and evaluate with the same categories."
        )
    x, y, width, height = numbers(row, "bbox", 4, where)
    if width < 0 or height < 0:
        raise DataError(
            f"{where}.bbox: holds x, y, width and height; the last two must not be negative. "
            f"Got {width:g} and {height:g}. Correct them."
        )
    n_keypoints = len(categories.keypoint_names)
    keypoints = None
    if n_keypoints and row.get("keypoints") is not None:
        keypoints = np.array(numbers(row, "keypoints", 3 * n_keypoints, where)).reshape(-1, 3)
        keypoints = _checked(keypoints, where)
    return Found(
        where=where,
        box=(x, y, x + width, y + height),
        label=labels[category_id],
        crowd=bool(row.get("iscrowd", 0)) and not row.get("difficult", 0),
        difficult=bool(row.get("difficult", 0)),  # Not COCO's: see `coco_write.to_coco`.
        area=float(field(row, "area", float, where)) if row.get("area") is not None else None,
        segment=parse_segmentation(row.get("segmentation"), size, f"{where}.segmentation"),
        keypoints=keypoints,
    )


def _checked(keypoints: np.ndarray, where: str) -> np.ndarray:
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        raise DataError(f"{where}.keypoints: each third number must be 0, 1 or 2. Correct it.")
    return np.clip(keypoints, -1e6, 1e6).astype(np.float32)


def _captions_beside(path: pathlib.Path) -> dict[int, list[str]]:
    """From the captions file of the same pictures, which may have more of them."""
    for kind in ("instances", "person_keypoints"):
        beside = path.with_name(path.name.replace(kind, "captions"))
        if kind in path.name and beside.is_file():
            data, captions = _load(beside), defaultdict(list)
            for number, row in enumerate(data["annotations"]):
                where = f"{beside}: annotations[{number}]"
                image_id = field(row, "image_id", int, where)
                captions[image_id].append(field(row, "caption", str, where))
            return captions
    return {}
