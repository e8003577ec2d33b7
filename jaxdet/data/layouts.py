"""Which format a file or folder has, and the parts of the data set in it.

A finder looks at a path and returns how to read each part, by its name; nothing where the path is
of another format.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from jaxdet.data import (
    class_folders,
    coco_json,
    csv_boxes,
    mask_folders,
    splits,
    tfds_source,
    via,
    voc,
    yolo_text,
)
from jaxdet.data.records import DataError, Source
from jaxdet.data.reports import Report

JOINTS = "Files of joints, not read: --format coco_keypoints reads persons with them"


class Options(NamedTuple):
    """What a reader is told beside its path."""

    report: Report
    classes: Sequence[str] | None = None
    images: pathlib.Path | None = None


Format = Literal["coco", "coco_keypoints", "voc", "yolo", "via", "masks", "csv", "tfds", "folders"]
Parts = dict[str, Callable[[], Source]]
Finder = Callable[[pathlib.Path, Options], Parts]


def find_parts(path: pathlib.Path, options: Options, *, format: str | None = None) -> Parts:
    """The parts of a data set in whichever format it is.

    Args:
      path: The file or folder.
      options: For the readers.
      format: One of `FORMATS`; found out if None.

    Returns:
      How to read each part, by its name: train, val, test or any other.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}. Got {format!r}.")
    inner = [] if not path.is_dir() else [f for f in sorted(path.iterdir()) if _is_voc(f)]
    if inner and not _is_voc(path):
        raise DataError(
            f"{path}: holds VOC folders; name one of them: {', '.join(map(str, inner))}"
        )
    for find in FORMATS[format] if format else ORDER:
        parts = find(path, options)
        if parts:
            return parts
    if format:
        raise DataError(f"{path}: no data set of the format {format!r} was found there.")
    raise DataError(
        f"{path}: no data set was found there. Looked for a COCO JSON file; for "
        "annotations/instances_*.json or *.json; for Annotations/ with JPEGImages/ (VOC); for "
        "*.xml beside pictures, also in sub folders; for a data.yaml (YOLO); for JSON files of "
        "the VGG Image Annotator; for masks/ beside images/; for *.csv with columns "
        f"{', '.join(csv_boxes.NEEDED)}; for a prepared TFDS folder; for two or more "
        "folders of pictures, one a class."
    )


def _tfds(path: pathlib.Path, options: Options) -> Parts:
    if not tfds_source.is_prepared(path):
        return {}
    return {
        splits.split_of(name) or name: functools.partial(
            tfds_source.read_tfds, path, name, classes=options.classes, report=options.report
        )
        for name in tfds_source.split_names(path)
    }


def _tfds_below(path: pathlib.Path, options: Options) -> Parts:
    """The newest version of the one data set of a folder: VERSION/ or NAME/VERSION/ in it."""
    versions = [*path.glob("*/dataset_info.json"), *path.glob("*/*/dataset_info.json")]
    newest = {file.parent.parent: file.parent for file in sorted(versions)}
    if len(newest) > 1:
        raise DataError(f"{path}: name one of {', '.join(map(str, newest))}.")
    return _tfds(next(iter(newest.values())), options) if newest else {}


def _is_voc(path: pathlib.Path) -> bool:
    return (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir()


def _voc(path: pathlib.Path, options: Options) -> Parts:
    if not _is_voc(path):
        return {}
    lists = {
        file.stem: [line.split()[0] for line in _read(file).splitlines() if line.strip()]
        for file in sorted((path / "ImageSets" / "Main").glob("*.txt"))
        if splits.split_of(file.stem) == file.stem
    }
    stems = sorted(file.stem for file in (path / "Annotations").glob("*.xml"))

    def read(part: str, names: Sequence[str]) -> Source:
        # From all files, so that labels are the same in all parts.
        files = [path / "Annotations" / f"{stem}.xml" for stem in stems]
        found = options.classes or voc.class_names(files)
        pairs = voc.pair_listed(path, names, options.report)
        return voc.read_voc(f"{path} [{part}]", pairs, classes=found, report=options.report)

    return {
        part: functools.partial(read, part, names)
        for part, names in (lists or {"all": stems}).items()
    }


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Write it again.") from error


def _side_by_side_voc(path: pathlib.Path, options: Options) -> Parts:
    if not path.is_dir():
        return {}
    files = _glob(path, "*.xml", 3)
    folders = _by_part(path, dict.fromkeys(file.parent for file in files))

    def read(part: str) -> Source:
        found = [voc.pair_side_by_side(folder, options.report) for folder in folders[part]]
        pairs = [pair for some, _ in found for pair in some]
        alone = [picture for _, some in found for picture in some]
        classes = options.classes or voc.class_names(files)
        source = voc.read_voc(f"{path} [{part}]", pairs, classes=classes, report=options.report)
        if not alone:
            return source
        note = f"Pictures without an XML file, left out: {len(alone)} ({alone[0].name}, ...)."
        return dataclasses.replace(source, notes=(*source.notes, note))

    return {part: functools.partial(read, part) for part in folders}


def _coco(path: pathlib.Path, options: Options) -> Parts:
    """What is surely COCO: a file that was named, or an `annotations` folder."""
    named = path.is_file() and path.suffix.lower() == ".json"
    files = [path] if named and not via.is_via(path) else []
    for pattern in ("instances_*.json", "person_keypoints_*.json", "captions_*.json", "*.json"):
        files = files or sorted(path.glob(f"annotations/{pattern}"))
    return _coco_files(path, files, options)


def _coco_keypoints(path: pathlib.Path, options: Options) -> Parts:
    """Persons with joints, where boxes of all classes are beside them."""
    files = [path] if path.is_file() and path.suffix.lower() == ".json" else []
    for pattern in ("person_keypoints_*.json", "instances_*.json"):
        files = files or sorted(path.glob(f"annotations/{pattern}"))
    return _coco_files(path, files, options)


def _loose_coco(path: pathlib.Path, options: Options) -> Parts:
    """JSON files that lie about: taken for COCO where nothing else was found."""
    return _coco_files(path, _glob(path, "*.json", 1, first_only=True), options)


def _coco_files(path: pathlib.Path, files: Sequence[pathlib.Path], options: Options) -> Parts:
    def read(file: pathlib.Path) -> Source:
        joints = file.with_name(file.name.replace("instances_", "person_keypoints_", 1))
        if joints != file and joints.exists():
            options.report.remark(JOINTS, str(joints))
        return coco_json.read_coco(file, **options._asdict())

    return _one_file_a_part(path, files, read)


def _via(path: pathlib.Path, options: Options) -> Parts:
    files = [path] if path.is_file() else _glob(path, "*.json", 2)
    files = [file for file in files if file.suffix.lower() == ".json" and via.is_via(file)]

    def read(file: pathlib.Path) -> Source:
        found = options._replace(classes=options.classes or via.class_names(files))
        return via.read_via(file, **found._asdict())

    return _one_file_a_part(path, files, read)


def _csv(path: pathlib.Path, options: Options) -> Parts:
    files = [path] if path.is_file() else _glob(path, "*.csv", 1)
    if path.is_dir():
        files = [file for file in files if csv_boxes.is_csv(file)]
    files = [file for file in files if file.suffix.lower() == ".csv"]

    def read(file: pathlib.Path) -> Source:
        found = options._replace(classes=options.classes or csv_boxes.class_names(files))
        return csv_boxes.read_csv(file, **found._asdict())

    return _one_file_a_part(path, files, read)


def _one_file_a_part(
    path: pathlib.Path, files: Sequence[pathlib.Path], read: Callable[[pathlib.Path], Source]
) -> Parts:
    parts: Parts = {}
    for file in files:
        part = splits.split_of(str(file.relative_to(path))) if path.is_dir() else file.stem
        if part is None and len(files) > 1:
            continue
        if part in parts:
            raise DataError(
                f"{path}: {file.name} is not the only file for '{part}'. Name the file itself."
            )
        parts[part or file.stem] = functools.partial(read, file)
    return parts


def _yolo(path: pathlib.Path, options: Options) -> Parts:
    files = [path] if path.is_file() else sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    files = [f for f in files if f.suffix in (".yaml", ".yml") and yolo_text.is_data_yaml(f)]
    if len(files) > 1:
        raise DataError(f"{path}: name one of {', '.join(file.name for file in files)}.")
    if not files:
        return {}
    data = yolo_text.read_data_yaml(files[0])
    return {
        part: functools.partial(
            yolo_text.read_yolo,
            f"{files[0]} [{part}]",
            folders,
            data,
            classes=options.classes,
            report=options.report,
        )
        for part, folders in data.parts.items()
    }


def _masks(path: pathlib.Path, options: Options) -> Parts:
    if not path.is_dir():
        return {}
    found = mask_folders.find_masked(path, options.report)
    parts: dict[str, list[mask_folders.Masked]] = {}
    for masked in found:
        part = splits.split_of(str(masked.picture.parent.relative_to(path))) or "all"
        parts.setdefault(part, []).append(masked)

    def read(part: str) -> Source:
        classes = options.classes or mask_folders.class_names(found)
        return mask_folders.read_masks(
            f"{path} [{part}]", parts[part], classes=classes, report=options.report
        )

    return {part: functools.partial(read, part) for part in parts}


def _class_folders(path: pathlib.Path, options: Options) -> Parts:
    found = class_folders.find_folders(path) if path.is_dir() else {}
    classes = options.classes or class_folders.class_names(found)
    return {
        part: functools.partial(
            class_folders.read_folders,
            f"{path} [{part}]",
            folders,
            classes=classes,
            report=options.report,
        )
        for part, folders in found.items()
    }


def _several_class_folders(path: pathlib.Path, options: Options) -> Parts:
    """One folder of pictures alone is more likely a data set whose annotations are missing."""
    parts = _class_folders(path, options)
    several = len(class_folders.class_names(class_folders.find_folders(path))) > 1 if parts else 0
    return parts if several else {}


def _by_part(
    root: pathlib.Path, folders: Sequence[pathlib.Path] | dict[pathlib.Path, None]
) -> dict[str, list[pathlib.Path]]:
    parts: dict[str, list[pathlib.Path]] = {}
    for folder in folders:
        part = splits.split_of(str(folder.relative_to(root))) or "all"
        parts.setdefault(part, []).append(folder)
    return parts


def _glob(
    path: pathlib.Path, pattern: str, depth: int, *, first_only: bool = False
) -> list[pathlib.Path]:
    """Files down to a depth, nearest first; of the first depth that has any if so told."""
    found: list[pathlib.Path] = []
    for level in range(depth + 1):
        if not (found and first_only):
            found += sorted(path.glob("*/" * level + pattern))
    return found


ORDER: tuple[Finder, ...] = (
    *(_tfds, _voc, _yolo, _coco, _side_by_side_voc),
    *(_masks, _via, _csv, _loose_coco, _several_class_folders, _tfds_below),
)
FORMATS: dict[str, tuple[Finder, ...]] = {
    "coco": (_coco, _loose_coco),
    "coco_keypoints": (_coco_keypoints,),
    "voc": (_voc, _side_by_side_voc),
    "yolo": (_yolo,),
    "via": (_via,),
    "masks": (_masks,),
    "csv": (_csv,),
    "tfds": (_tfds, _tfds_below),
    "folders": (_class_folders,),
}
