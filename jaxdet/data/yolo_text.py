"""YOLO text labels with their `data.yaml`, to a `Source`: boxes, polygons, keypoints.

Each picture `images/.../a.jpg` has a file `labels/.../a.txt` with a line an object, all numbers
relative to the picture: `class cx cy w h`, or `class x y x y ...` (a polygon), or with `kpt_shape`
in the YAML `class cx cy w h x y [v] ...`.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from jaxdet.data import segments
from jaxdet.data.assemble import Found, assemble
from jaxdet.data.coco_json import MAX_KEYPOINTS
from jaxdet.data.coco_masks import outline
from jaxdet.data.fields import short
from jaxdet.data.pictures import SUFFIXES, PictureFiles, read_header
from jaxdet.data.records import DataError, Polygons, Source
from jaxdet.data.reports import Report, reporting

UNLABELLED = "Pictures without a label file, taken as without objects"
SPLITS = ("train", "val", "test")

_NEAR = 0.01  # How far beyond the picture a relative coordinate may be.


class DataYaml(NamedTuple):
    """A `data.yaml`, checked."""

    path: pathlib.Path
    names: tuple[str, ...]  # Of class 0, 1, ...
    parts: dict[str, list[pathlib.Path]]  # Folders and lists of pictures.
    keypoints: tuple[int, int] = (0, 0)  # How many an object has, and numbers of each.
    pairs: tuple[tuple[int, int], ...] = ()


def is_data_yaml(path: pathlib.Path) -> bool:
    """Whether a file looks like a `data.yaml`."""
    try:
        return {"train", "names"} <= set(_load(path))
    except DataError:
        return False


def read_data_yaml(path: pathlib.Path) -> DataYaml:
    """Reads the file that says where the parts are and what the classes are called."""
    data = _load(path)
    names = data.get("names")
    if isinstance(names, dict):
        names = [names.get(i, names.get(str(i))) for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str | int) for n in names):
        raise DataError(f"{path}: names must be class names by their number. Write them.")
    if data.get("nc", len(names)) != len(names):
        raise DataError(f"{path}: nc is {short(data['nc'])}, but there are {len(names)} names.")
    n_points, n_numbers = _kpt_shape(path, data.get("kpt_shape", [0, 2]))
    flip = data.get("flip_idx", list(range(n_points)))
    if not isinstance(flip, list) or sorted(map(str, flip)) != sorted(map(str, range(n_points))):
        raise DataError(f"{path}: flip_idx must have each of {n_points} keypoints once.")
    parts = {}
    for part in SPLITS:
        values = data.get(part)
        values = values if isinstance(values, list) else [values] if values else []
        if values:
            parts[part] = [_resolve(path, data.get("path"), value) for value in values]
    return DataYaml(
        path=path,
        names=tuple(map(str, names)),
        parts=parts,
        keypoints=(n_points, n_numbers),
        pairs=tuple((i, other) for i, other in enumerate(flip) if i < other),
    )


def read_yolo(
    name: str,
    folders: Sequence[pathlib.Path],
    data: DataYaml,
    *,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> Source:
    """Reads the labels of the pictures of some folders.

    Args:
      name: What messages call the source.
      folders: Folders of pictures, or text files that list pictures.
      data: What the classes are.
      classes: Names of labels 1, 2, ...; those of `data` if None.
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source; image ids are 1, 2, ... in order of the paths.

    Source:
      https://docs.ultralytics.com/datasets
    """
    with reporting(report) as report:
        known = tuple(classes or data.names)
        annotations, files = [], []
        pictures = sorted({p for folder in folders for p in _pictures(folder)})
        for number, path in enumerate(pictures, start=1):
            with report.noting(picture=path):
                size = read_header(path).upright
                read = functools.partial(_object, size=size, data=data, classes=known)
                objects = report.each(path, _lines(labels_of(path), report), read)
                if path not in report.bad:
                    n_points = data.keypoints[0]
                    annotations.append(
                        assemble(number, path.name, size, objects, report, n_keypoints=n_points)
                    )
                    files.append(path)
        return Source(
            name=name,
            classes=known,
            annotations=tuple(annotations),
            read=PictureFiles(tuple(files), upright=True),
            notes=report.notes(),
            keypoint_names=tuple(str(i) for i in range(data.keypoints[0])),
            keypoint_pairs=data.pairs,
        )


def labels_of(picture: pathlib.Path) -> pathlib.Path:
    """Where the labels of a picture are: the last folder `images` of its path is `labels`."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return pathlib.Path(*parts).with_suffix(".txt")


@functools.lru_cache(maxsize=8)
def _parse_yaml(text: str) -> Any:
    return yaml.safe_load(text)


def _load(path: pathlib.Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        # Anchors let a small file stand for more than fits into memory.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise DataError(f"{path}: has aliases (*name). Write the values out.")
        data = _parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not YAML ({short(str(error))}). Write it again.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: is no table of train, val and names. Write it again.")
    return data


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(f"{path}: is no text ({error}). Write it again.") from error


def _kpt_shape(path: pathlib.Path, value: Any) -> tuple[int, int]:
    good = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not good or not 0 <= value[0] <= MAX_KEYPOINTS or value[1] not in (2, 3):
        raise DataError(f"{path}: kpt_shape = {short(value)} must be [count, 2 or 3].")
    return value[0], value[1]


def _resolve(path: pathlib.Path, root: Any, value: Any) -> pathlib.Path:
    """Where a part is; exporters write paths that are relative to something else."""
    if not isinstance(value, str) or not isinstance(root, str | None):
        raise DataError(f"{path}: path and train, val, test must be text: found {short(value)}.")
    bases = [path.parent / root] if root else []
    bases.append(path.parent)
    names = [value, value.removeprefix("../")]
    for candidate in (base / name for name in names for base in bases):
        try:
            if candidate.exists():
                return candidate
        except (OSError, ValueError):  # No file can have this name.
            continue
    raise DataError(f"{path}: there is no {short(value)} in {bases[0]}. Correct the path.")


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    if folder.is_dir():
        return [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES]
    lines = [line.strip() for line in _read_text(folder).splitlines()]
    return [folder.parent / line for line in lines if line]


def _lines(path: pathlib.Path, report: Report) -> list[tuple[str, list[str]]]:
    """The words of each line of a label file, and where they are."""
    if not path.is_file():
        report.remark(UNLABELLED, str(path))
        return []
    lines = enumerate(_read_text(path).splitlines(), start=1)
    return [(f"{path}: line {number}", line.split()) for number, line in lines if line.strip()]


def _object(
    line: tuple[str, list[str]], *, size: tuple[int, int], data: DataYaml, classes: Sequence[str]
) -> Found:
    where, words = line
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.array([np.nan])
    n_points, n_numbers = data.keypoints
    n_posed = 5 + n_points * n_numbers
    is_box = len(values) == n_posed
    if not np.isfinite(values).all() or not (is_box or (len(values) >= 7 and len(values) % 2)):
        raise DataError(
            f"{where} must be a class and 4 numbers, or the x y of at least three points: found "
            f"{short(' '.join(words))}. Correct it."
        )
    if values[0] not in range(len(data.names)):
        raise DataError(f"{where}: class {words[0]} is none of 0 to {len(data.names) - 1}.")
    name = data.names[int(values[0])]
    if name not in classes:
        raise DataError(f"{where}: {name!r} is none of the classes {', '.join(classes)}.")
    label, scale = classes.index(name) + 1, np.array([size[1], size[0]], np.float64)
    points = values[1:5].reshape(2, 2) if is_box else values[1:].reshape(-1, 2)
    if points.min() < -_NEAR or points.max() > 1 + _NEAR:
        raise DataError(
            f"{where}: {points.min():g} to {points.max():g}, but coordinates are relative to the "
            "picture, 0 to 1. Correct them."
        )
    if not is_box:
        segment = Polygons((outline((points * scale[None]).reshape(-1).tolist(), size, where),))
        return Found(where, segments.segment_box(segment), label, segment=segment)
    center, side = points * scale[None]
    x1, y1, x2, y2 = np.concatenate([center - side / 2, center + side / 2]).tolist()
    keypoints = None
    if n_points:
        keypoints = _keypoints(values[5:].reshape(n_points, n_numbers), scale, where)
    return Found(where, (x1, y1, x2, y2), label, keypoints=keypoints)


def _keypoints(values: np.ndarray, scale: np.ndarray, where: str) -> np.ndarray:
    """Pixels and visibility; without a visibility, (0, 0) is not labelled."""
    if values.shape[1] == 3:
        seen = values[:, 2]
        if not np.isin(seen, (0, 1, 2)).all():
            raise DataError(f"{where}: the visibility of a keypoint must be 0, 1 or 2.")
    else:
        seen = 2.0 * values.any(axis=1)
    return np.column_stack([np.clip(values[:, :2] * scale[None], -1e6, 1e6), seen])
