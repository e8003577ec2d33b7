"""Opens what `--data` names, says what was understood, writes it as COCO ground truth."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import UInt8

from jaxdet.data import coco_json, shapes, splits, voc
from jaxdet.data.pictures import PictureFiles, read_complete
from jaxdet.data.records import Annotation, DataError, Source

__all__ = [
    "Annotation",
    "DataError",
    "Source",
    "describe",
    "open_data",
    "open_folder",
    "select",
    "to_coco",
    "validate",
]

# Up to here `validate` decodes every picture; beyond, it looks for each file's end only.
MAX_DECODED = 5000


def open_data(
    data: str,
    *,
    split: str,
    data_dir: pathlib.Path,
    scenes: str = shapes.FULL.name,
    images: pathlib.Path | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Opens what `--data` names: the generated scenes, or a folder, looking at every picture.

    Args:
      data: "shapes", or the path of a COCO JSON, a COCO or VOC folder, or pictures with XML files.
      split: "train", "val" or "test".
      data_dir: Where generated data sets are kept.
      scenes: Which drawing of "shapes", by the name of its config.
      images: As in `open_folder`.
      classes: As in `open_folder`.

    Returns:
      The source; every picture of a folder can be read.
    """
    if data == "shapes":
        name = {"val": "validation"}.get(split, split)
        config = {c.name: c for c in shapes.Shapes.BUILDER_CONFIGS}[scenes]
        return shapes.load(name, data_dir=data_dir, config=config)
    if not data:
        raise DataError("--data: name a folder or a COCO JSON file.")
    source = open_folder(pathlib.Path(data), split=split, images=images, classes=classes)
    with tqdm.tqdm(total=len(source), desc=f"looking through {split}", leave=False) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        validate(source, progress=show)
    return source


def open_folder(
    path: pathlib.Path,
    *,
    split: str,
    classes: Sequence[str] | None = None,
    images: pathlib.Path | None = None,
) -> Source:
    """Opens a data set of pictures, in whichever of the known layouts it is.

    COCO: a JSON file, or a folder with `annotations/instances_*.json`, or with JSON files in it or
    in `train`, `val`, ... VOC: a folder with `Annotations` and `JPEGImages`, with or without
    `ImageSets/Main`; or pictures and XML files side by side, there or in sub folders.

    Args:
      path: The file or folder.
      split: "train", "val" or "test"; "trainval" where a part has this name. Where only one of
        val and test exists, it is both; where there is one part only, a fifth of it is held out,
        by the pictures' names.
      classes: Names of labels 1, 2, ...; found in the data if None.
      images: Folder of the pictures of a COCO JSON that lie far from it.

    Returns:
      The source. Pictures are not opened yet: see `validate`.
    """
    inner = [] if not path.is_dir() else [f for f in sorted(path.iterdir()) if _is_voc(f)]
    if inner and not _is_voc(path):
        raise DataError(
            f"{path}: holds VOC folders; name one of them: {', '.join(map(str, inner))}"
        )
    finders = (_voc_parts, _coco_parts, _side_by_side_parts, _loose_coco_parts)
    for find in finders:
        parts = find(path, classes, images)
        if parts:
            break
    else:
        raise DataError(
            f"{path}: no data set was found there. Looked for a COCO JSON file; for "
            "annotations/instances_*.json or *.json; for Annotations/ with JPEGImages/ (VOC); for "
            "*.xml beside pictures, also in sub folders."
        )
    part, divided = splits.choose(split, parts)
    source = parts[part]()
    if not len(source):
        raise DataError(f"{source.name}: holds no images.")
    if not divided:
        return source
    chosen = splits.divide([a.name for a in source.annotations], split)
    note = f"One part only: {len(chosen)} of its {len(source)} images are taken as '{split}'."
    return select(source, chosen, name=f"{source.name} [{split}]", note=note)


_Parts = dict[str, Callable[[], Source]]


def _coco_parts(
    path: pathlib.Path, classes: Sequence[str] | None, images: pathlib.Path | None
) -> _Parts:
    """What is surely COCO: a file that was named, or an `annotations` folder."""
    files = [path] if path.is_file() else []
    for pattern in ("annotations/instances_*.json", "annotations/*.json"):
        files = files or sorted(path.glob(pattern))
    return _coco_files(path, files, classes, images)


def _loose_coco_parts(
    path: pathlib.Path, classes: Sequence[str] | None, images: pathlib.Path | None
) -> _Parts:
    """JSON files that lie about: taken for COCO where nothing else was found."""
    files = sorted(path.glob("*.json")) or sorted(path.glob("*/*.json"))
    return _coco_files(path, files, classes, images)


def _coco_files(
    path: pathlib.Path,
    files: Sequence[pathlib.Path],
    classes: Sequence[str] | None,
    images: pathlib.Path | None,
) -> _Parts:
    parts: _Parts = {}
    for file in files:
        part = splits.split_of(str(file.relative_to(path))) if path.is_dir() else file.stem
        if part is None and len(files) > 1:
            continue
        if part in parts:
            raise DataError(
                f"{path}: {file.name} is not the only JSON file for '{part}'. Name the file itself."
            )
        parts[part or file.stem] = functools.partial(
            coco_json.read_coco, file, classes=classes, images=images
        )
    return parts


def _is_voc(path: pathlib.Path) -> bool:
    return (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir()


def _voc_parts(
    path: pathlib.Path, classes: Sequence[str] | None, images: pathlib.Path | None
) -> _Parts:
    del images  # VOC says where they are.
    if not _is_voc(path):
        return {}
    lists = {
        file.stem: [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
        for file in sorted((path / "ImageSets" / "Main").glob("*.txt"))
        if splits.split_of(file.stem) == file.stem
    }
    stems = sorted(file.stem for file in (path / "Annotations").glob("*.xml"))

    def read(part: str, names: Sequence[str]) -> Source:
        # From all files, so that labels are the same in all parts.
        found = classes or voc.class_names([path / "Annotations" / f"{s}.xml" for s in stems])
        pairs = voc.pair_listed(path, names)
        return voc.read_voc(f"{path} [{part}]", pairs, classes=found)

    return {
        part: functools.partial(read, part, names)
        for part, names in (lists or {"all": stems}).items()
    }


def _side_by_side_parts(
    path: pathlib.Path, classes: Sequence[str] | None, images: pathlib.Path | None
) -> _Parts:
    del images  # They are beside the XML files.
    if not path.is_dir():
        return {}
    patterns = ("*.xml", "*/*.xml", "*/*/*.xml", "*/*/*/*.xml")
    files = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    folders: dict[str, list[pathlib.Path]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        part = splits.split_of(str(folder.relative_to(path))) or "all"
        folders.setdefault(part, []).append(folder)

    def read(part: str) -> Source:
        found = [voc.pair_side_by_side(folder) for folder in folders[part]]
        pairs = [pair for some, _ in found for pair in some]
        alone = [picture for _, some in found for picture in some]
        source = voc.read_voc(f"{path} [{part}]", pairs, classes=classes or voc.class_names(files))
        if not alone:
            return source
        note = f"Pictures without an XML file, left out: {len(alone)} ({alone[0].name}, ...)."
        return dataclasses.replace(source, notes=(*source.notes, note))

    return {part: functools.partial(read, part) for part in folders}


def select(source: Source, indices: Sequence[int], *, name: str, note: str = "") -> Source:
    """The source of these images only, in this order."""
    if isinstance(source.read, PictureFiles):
        read = source.read.select(indices)
    else:
        read = functools.partial(_read_selected, source.read, tuple(indices))
    return dataclasses.replace(
        source,
        name=name,
        annotations=tuple(source.annotations[index] for index in indices),
        read=read,
        notes=(*source.notes, note) if note else source.notes,
    )


def _read_selected(
    read: Callable[[int], np.ndarray], indices: Sequence[int], index: int
) -> UInt8[np.ndarray, "h w 3"]:
    return read(indices[index])


def validate(source: Source, *, progress: Callable[[int], None] | None = None) -> None:
    """Opens every picture once, so that training does not stop at a bad one hours later.

    Args:
      source: What to look through; beyond `MAX_DECODED` picture files, only their ends are
        looked at, and no pixels decoded.
      progress: Called with the number of pictures seen so far.

    Raises:
      DataError: Names every picture that is missing, cut off, unreadable or of another size than
        annotated (the first ten of them).
    """

    def fault(index: int) -> str | None:
        try:
            if len(source) > MAX_DECODED and isinstance(source.read, PictureFiles):
                read_complete(source.read.paths[index])
            else:
                source[index]
        except DataError as error:
            return str(error)
        return None

    faults = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, found in enumerate(pool.map(fault, range(len(source))), start=1):
            faults += [found] if found else []
            if progress:
                progress(number)
    if faults:
        more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise DataError("\n".join(faults[:10]) + more)


def describe(source: Source) -> str:
    """What was understood, for a person to check: a few lines of text."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(a.boxes for a in source.annotations)])
    labels, crowd, difficult = (
        np.concatenate([np.zeros(0, int), *(getattr(a, field) for a in source.annotations)])
        for field in ("labels", "crowd", "difficult")
    )
    counts = np.bincount(labels, minlength=len(source.classes) + 1)[1:]
    n_empty = sum(not len(a.labels) for a in source.annotations)
    per_class = [f"{c} {n}" for c, n in zip(source.classes, counts, strict=True) if n]
    if len(per_class) < len(counts):
        per_class.append(f"{len(counts) - len(per_class)} classes without objects")
    heights_widths = np.array([a.size for a in source.annotations]).reshape(-1, 2)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    lines = [
        f"{source.name}: {len(source)} images, {len(source.classes)} classes, {len(labels)} objects"
        f" ({int(crowd.sum())} crowd, {int(difficult.sum())} difficult); {n_empty} images without",
        f"  objects: {', '.join(per_class)}",
        f"  image height {_range(heights_widths[:, 0])}, width {_range(heights_widths[:, 1])}, "
        f"square root of box area {_range(sides)} px",
    ]
    return "\n".join(lines + [f"  {note}" for note in source.notes])


def _range(values: np.ndarray) -> str:
    if not values.size:
        return "-"
    if values.min() == values.max():
        return f"{values.min():.0f}"
    return f"{values.min():.0f} to {values.max():.0f} (median {np.median(values):.0f})"


def to_coco(source: Source) -> dict[str, Any]:
    """The ground truth as a COCO dictionary, with the data set's own ids.

    Departures:
      Difficult objects are written as crowds. The COCO tools overwrite an `ignore` field, and
      `iscrowd` is the one way to say that a detection of the object counts neither way. A crowd
      may absorb several detections; that is the intended leniency for difficult objects too.
    """
    images, annotations = [], []
    for a in source.annotations:
        height, width = a.size
        images.append({"id": a.image_id, "file_name": a.name, "height": height, "width": width})
        sides = a.boxes[:, 2:] - a.boxes[:, :2]
        areas = a.areas if a.areas is not None else sides[:, 0] * sides[:, 1]
        for row, label in enumerate(a.labels):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": a.image_id,
                    "category_id": source.category_ids[label - 1],
                    "bbox": [float(v) for v in (*a.boxes[row, :2], *sides[row])],
                    "area": float(areas[row]),
                    "iscrowd": int(a.crowd[row] or a.difficult[row]),
                }
            )
    categories = [
        {"id": key, "name": name}
        for key, name in zip(source.category_ids, source.classes, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
