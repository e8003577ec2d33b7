"""Opens what `--data` names, and says what was understood."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tqdm
from jaxtyping import UInt8

from jaxdet.data import layouts, shapes, splits, tfds_source
from jaxdet.data.coco_write import to_coco
from jaxdet.data.pictures import PictureFiles, read_complete
from jaxdet.data.records import Annotation, DataError, Source
from jaxdet.data.reports import Report, reporting

__all__ = [
    "Annotation",
    "DataError",
    "Source",
    "describe",
    "find_bad_pictures",
    "open_data",
    "open_folder",
    "resolve",
    "select",
    "to_coco",
    "validate",
    "without_faults",
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
    format: str | None = None,
    skip_bad: bool = False,
) -> Source:
    """Opens what `--data` names: the generated scenes, or a data set, looking at every picture.

    Args:
      data: "shapes"; the path of a data set, see `open_folder`; or "tfds:NAME".
      split: "train", "val" or "test".
      data_dir: Where generated and TFDS's data sets are kept.
      scenes: Which drawing of "shapes", by the name of its config.
      images: As in `open_folder`.
      classes: As in `open_folder`.
      format: As in `open_folder`.
      skip_bad: Leave out pictures with faults in them or their annotations, and say so in `notes`.

    Returns:
      The source; every picture of it can be read.

    Raises:
      DataError: Names every fault (the first ten of them), unless `skip_bad`.
    """
    if data == "shapes":
        name = {"val": "validation"}.get(split, split)
        config = {c.name: c for c in shapes.Shapes.BUILDER_CONFIGS}[scenes]
        return shapes.load(name, data_dir=data_dir, config=config)
    report = Report()
    source = open_folder(
        resolve(data, data_dir),
        split=split,
        classes=classes,
        images=images,
        format=format,
        report=report,
    )
    return without_faults(source, report, skip_bad=skip_bad)


def without_faults(source: Source, report: Report, *, skip_bad: bool = False) -> Source:
    """Looks at every picture, and stops at faults or leaves their pictures out.

    Args:
      source: What was read, pictures with faults in their annotations left out already.
      report: Of the reader.
      skip_bad: As in `open_data`.

    Returns:
      The source; every picture of it can be read.
    """
    with tqdm.tqdm(total=len(source), desc=f"looking through {source.name}", leave=False) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        bad = find_bad_pictures(source, progress=show)
    for text in bad.values():
        report.fault(text)
    if not report.faults:
        return source
    if not skip_bad:
        try:
            report.stop()
        except DataError as error:
            hint = "check_data.py lists all; --skip-bad leaves such pictures out."
            raise DataError(f"{error}\n{hint}") from None
    good = [index for index in range(len(source)) if index not in bad]
    n_left_out = len(report.bad) + len(bad)
    note = f"Left out for {len(report.faults)} faults: {n_left_out} pictures."
    source = select(source, good, name=source.name, note=note)
    if not len(source):
        raise DataError(f"{source.name}: holds no picture without faults.\n{report.faults[0]}")
    return source


def resolve(data: str, data_dir: pathlib.Path) -> pathlib.Path:
    """The path that `--data` means; a TFDS set is prepared if it has to be."""
    if not data:
        raise DataError("--data: name a folder or a file.")
    if data.startswith(tfds_source.PREFIX):
        name = data.removeprefix(tfds_source.PREFIX)
        path = pathlib.Path(name)
        return path if tfds_source.is_prepared(path) else tfds_source.find_prepared(name, data_dir)
    if not (path := pathlib.Path(data)).exists():
        raise DataError(f"{data}: there is no such file or folder.")
    return path


def open_folder(
    path: pathlib.Path,
    *,
    split: str,
    classes: Sequence[str] | None = None,
    images: pathlib.Path | None = None,
    format: str | None = None,
    report: Report | None = None,
) -> Source:
    """Opens a data set of pictures, in whichever of the known layouts it is.

    COCO: a JSON file, or a folder with `annotations/instances_*.json`, or with JSON files in it or
    in `train`, `val`, ... VOC: a folder with `Annotations` and `JPEGImages`, with or without
    `ImageSets/Main`; or pictures and XML files side by side, there or in sub folders. YOLO: a
    folder with `data.yaml`, or that file. VIA: its JSON. Masks: `masks` beside `images`. CSV: a
    file, see `csv_boxes`. TFDS: a folder prepared as array_record. Folders: pictures by class, see
    `class_folders`.

    Args:
      path: The file or folder.
      split: "train", "val" or "test"; "trainval" where a part has this name. Where only one of
        val and test exists, it is both; where there is one part only, a fifth of it is held out,
        by the pictures' names.
      classes: Names of labels 1, 2, ...; found in the data if None.
      images: Folder of the pictures of a JSON or CSV file that lie far from it.
      format: One of `layouts.FORMATS`, if what is found by itself is wrong.
      report: Gets faults, and pictures with faults are left out; raised if None.

    Returns:
      The source. Pictures are not opened yet: see `validate`.
    """
    with reporting(report) as report:
        parts = layouts.find_parts(path, layouts.Options(report, classes, images), format=format)
        part, divided = splits.choose(split, parts)
        source = parts[part]()
    if not len(source):
        report.stop()
        raise DataError(f"{source.name}: holds no images.")
    if not divided:
        stands_for = split != "train" and split != part
        notes = (f"There is no part '{split}': '{part}' is taken.",) if stands_for else ()
        return dataclasses.replace(source, notes=(*source.notes, *notes))
    chosen = splits.divide([a.name for a in source.annotations], split)
    same = ", the same as 'val'" if split == "test" else ""
    note = f"One part only: {len(chosen)} of its {len(source)} images are taken as '{split}'{same}."
    return select(source, chosen, name=f"{source.name} [{split}]", note=note)


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
      source: What to look through.
      progress: Called with the number of pictures seen so far.

    Raises:
      DataError: Names what `find_bad_pictures` finds (the first ten of them).
    """
    Report(faults=list(find_bad_pictures(source, progress=progress).values())).stop()


def find_bad_pictures(
    source: Source, *, progress: Callable[[int], None] | None = None
) -> dict[int, str]:
    """Opens every picture once.

    Args:
      source: What to look through; beyond `MAX_DECODED` picture files, only their ends are
        looked at, and no pixels decoded.
      progress: Called with the number of pictures seen so far.

    Returns:
      By index, what is wrong with those that are missing, cut off, unreadable or of another size
      than annotated.
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

    faults = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, found in enumerate(pool.map(fault, range(len(source)))):
            if found:
                faults[index] = found
            if progress:
                progress(index + 1)
    return faults


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
