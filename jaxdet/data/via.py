"""Annotations of the VGG Image Annotator (JSON), to a `Source`; Matterport's balloons are such.

A region's class is one of its attributes: `class`, `label`, `name`, `type`, `category`, or the only
one there is. Where no region has an attribute, all are of one class, `object`.
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import segments
from jaxdet.data.assemble import Box, Found, assemble
from jaxdet.data.coco_masks import outline
from jaxdet.data.fields import field, numbers, read_json, short
from jaxdet.data.find_pictures import find_pictures
from jaxdet.data.pictures import PictureFiles, read_header
from jaxdet.data.records import DataError, Polygons, Source
from jaxdet.data.reports import Report, reporting

POINTS = "Regions without extent (points), left out"
ATTRIBUTES = ("class", "label", "name", "type", "category")
NAMELESS = "object"  # The class of regions without attributes.

_HEAD = 1 << 16  # Bytes in which the first picture is named.
_ROUND = 64  # Corners of what stands for an ellipse.


class _Region(NamedTuple):
    """One region, its attributes taken apart."""

    where: str
    shape: dict[str, Any]
    attributes: dict[str, str]


def is_via(path: pathlib.Path) -> bool:
    """Whether a JSON file is of this tool."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if b"_via_" not in head and b'"filename"' not in head:
            return False  # Others can be large.
        rows = _rows(path)
        return bool(rows) and all(isinstance(r, dict) and "filename" in r for r in rows.values())
    except (OSError, DataError):
        return False


def class_names(paths: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The classes of the regions of some files, sorted."""
    regions = [r for path in paths for row in _rows(path).items() for r in _regions(path, *row)]
    key = _class_key(regions)
    return tuple(sorted({r.attributes[key] if key else NAMELESS for r in regions if _has(r, key)}))


def read_via(
    path: pathlib.Path,
    *,
    classes: Sequence[str] | None = None,
    images: pathlib.Path | None = None,
    report: Report | None = None,
) -> Source:
    """Reads an annotation file, or a project file, of the VGG Image Annotator 1 or 2.

    Args:
      path: The JSON file.
      classes: Names of labels 1, 2, ...; if None, those found, sorted.
      images: Folder of the pictures; looked for around the JSON if None.
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source: polygons as they are, circles and ellipses as polygons, rectangles as boxes.

    Source:
      https://www.robots.ox.ac.uk/~vgg/software/via
    """
    with reporting(report) as report:
        rows = _rows(path)
        if not rows:
            raise DataError(f"{path}: holds no pictures, so it is no file of VIA.")
        regions: dict[str, list[_Region]] = {}
        for key, row in rows.items():
            with report.noting(picture=key):
                field(row, "filename", str, f"{path}: {short(key)}")
                regions[key] = list(_regions(path, key, row))
        key_of_class = _class_key([r for found in regions.values() for r in found])
        if classes is None:
            classes = class_names([path]) or (NAMELESS,)
        wanted = [(rows[key]["filename"], f"{path}: {short(key)}.filename") for key in regions]
        files = find_pictures(path, wanted, report, images=images)
        annotations, found = [], []
        for number, (key, file) in enumerate(zip(regions, files, strict=True), start=1):
            with report.noting(picture=key):
                if file is None:
                    report.bad.add(key)
                    continue
                if file in found:
                    raise DataError(f"{path}: {short(key)}: its picture is another's too.")
                read = functools.partial(
                    _objects,
                    size=(size := read_header(file).upright),
                    key=key_of_class,
                    classes=classes,
                    report=report,
                )
                objects = [o for some in report.each(key, regions[key], read) for o in some]
                if key in report.bad:
                    continue
                annotations.append(assemble(number, file.name, size, objects, report))
                found.append(file)
        return Source(
            name=str(path),
            classes=tuple(classes),
            annotations=tuple(annotations),
            read=PictureFiles(tuple(found), upright=True),
            notes=report.notes(),
        )


def _rows(path: pathlib.Path) -> dict[str, Any]:
    data = read_json(path)
    if isinstance(data, dict):
        data = data.get("_via_img_metadata", data)
    if not isinstance(data, dict):
        raise DataError(f"{path}: is no table of pictures, so it is no file of VIA.")
    return data


def _regions(path: pathlib.Path, key: str, row: Any) -> Iterator[_Region]:
    where = f"{path}: {short(key)}"
    regions = row.get("regions") or [] if isinstance(row, dict) else []
    # A list in version 2, a table in version 1.
    pairs = regions.items() if isinstance(regions, dict) else enumerate(regions)
    for number, region in pairs:
        here = f"{where}.regions[{number}]"
        shape = field(region, "shape_attributes", dict, here)
        attributes = region.get("region_attributes") or {}
        if not isinstance(attributes, dict):
            raise DataError(f"{here}.region_attributes must be a table. Correct it.")
        plain = {k: _plain(v) for k, v in attributes.items()}
        yield _Region(here, shape, {k: v for k, v in plain.items() if v})


def _plain(value: Any) -> str:
    """An attribute's text; of check boxes, the one that is checked."""
    if isinstance(value, dict):
        checked = [key for key, on in value.items() if on]
        return checked[0] if len(checked) == 1 else ""
    return str(value).strip()


def _has(region: _Region, key: str | None) -> bool:
    return key is None or key in region.attributes


def _class_key(regions: Sequence[_Region]) -> str | None:
    keys = sorted({key for region in regions for key in region.attributes})
    named = [key for wanted in ATTRIBUTES for key in keys if key.lower() == wanted]
    if named or not keys:
        return named[0] if named else None
    if len(keys) > 1:
        raise DataError(
            f"{regions[0].where}: which of the attributes {', '.join(keys)} is the class? Call "
            "it 'class'."
        )
    return keys[0]


def _objects(
    region: _Region,
    *,
    size: tuple[int, int],
    key: str | None,
    classes: Sequence[str],
    report: Report,
) -> list[Found]:
    """The region's object; none for a point."""
    shape, where = region.shape, f"{region.where}.shape_attributes"
    kind = shape.get("name")
    if kind == "point":
        report.remark(POINTS, where)
        return []
    if not _has(region, key):
        raise DataError(f"{region.where}: its attribute {key!r} is missing. Write its class.")
    name = region.attributes[key] if key else classes[0] if len(classes) == 1 else NAMELESS
    if name not in classes:
        raise DataError(f"{region.where}: {name!r} is none of the classes {', '.join(classes)}.")
    label = classes.index(name) + 1
    if kind == "rect":
        x, y, width, height = (field(shape, k, float, where) for k in ("x", "y", "width", "height"))
        box: Box = (float(x), float(y), float(x + width), float(y + height))
        return [Found(region.where, box, label)]
    segment = Polygons((outline(_corners(shape, kind, where), size, where),))
    return [Found(region.where, segments.segment_box(segment), label, segment=segment)]


def _corners(shape: dict[str, Any], kind: Any, where: str) -> list[float]:
    if kind in ("polygon", "polyline"):
        count = len(field(shape, "all_points_x", list, where))
        xs, ys = (numbers(shape, f"all_points_{axis}", count, where) for axis in "xy")
        return [value for point in zip(xs, ys, strict=True) for value in point]
    if kind not in ("circle", "ellipse"):
        raise DataError(f"{where}.name = {short(kind)} is no shape that is known. Correct it.")
    keys = ("cx", "cy", "r", "r") if kind == "circle" else ("cx", "cy", "rx", "ry")
    cx, cy, rx, ry = (float(field(shape, k, float, where)) for k in keys)
    tilt = float(field(shape, "theta", float, where)) if "theta" in shape else 0.0
    angles = np.linspace(0, 2 * math.pi, _ROUND, endpoint=False)
    x, y = rx * np.cos(angles), ry * np.sin(angles)
    turned = x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt)
    return np.column_stack([cx + turned[0], cy + turned[1]]).reshape(-1).tolist()
