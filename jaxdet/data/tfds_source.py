"""TFDS data sets prepared as array_record, to a `Source`, without TensorFlow.

Three layouts are read: ours (`arrays.py`: xyxy pixels, labels 1..k), and two of TFDS's own: a
sequence of objects with a `bbox` (yxyx, relative to the picture) and a `label` 0..k-1, as in
`voc/2007`, `coco/2017` and `wider_face`; and a `label` of the whole picture, as in `imagenet2012`.
Preparing those needs TensorFlow; reading does not.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8

from jaxdet.data import pictures, shapes
from jaxdet.data.assemble import WHOLE, Found, assemble, whole
from jaxdet.data.coco_masks import parse_segmentation
from jaxdet.data.records import Annotation, DataError, Segment, Source
from jaxdet.data.reports import Report, reporting

PREFIX = "tfds:"


class _Labels(NamedTuple):
    """What the labels of a data set mean."""

    classes: tuple[str, ...]
    objects: str | None  # Name of the sequence of objects; None in our layout.
    category_ids: tuple[int, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    keypoint_pairs: tuple[tuple[int, int], ...] = ()
    one_based: bool = False  # VOC's boxes are divided by the size as VOC wrote them.
    of_pictures: bool = False  # A class for the whole picture; no objects.


def is_prepared(path: pathlib.Path) -> bool:
    """Whether a folder is a data set that TFDS wrote."""
    return (path / "dataset_info.json").is_file() and (path / "features.json").is_file()


def find_prepared(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """The folder of a TFDS data set, which is prepared first if it is not there.

    Args:
      name: As TFDS calls it: "voc/2007", "coco/2017", "wider_face".
      data_dir: Where data sets are kept.

    Returns:
      The folder with its files.
    """
    versions = [p for p in sorted((data_dir / name).glob("*")) if is_prepared(p)]
    if versions:
        return versions[-1]
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except ImportError as error:
        raise DataError(
            f"{PREFIX}{name}: is not in {data_dir}, and to prepare it TFDS needs what is not "
            f"installed ({error.name}). For this once, pip install tensorflow importlib_resources, "
            "or name the folder of a prepared copy."
        ) from error
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(f"{PREFIX}{name}: TFDS has no data set of this name.") from error
    return pathlib.Path(builder.data_dir)


def split_names(folder: pathlib.Path) -> tuple[str, ...]:
    """The splits of a prepared data set that have records."""
    return tuple(name for name, split in _builder(folder).info.splits.items() if split.num_examples)


def read_tfds(
    folder: pathlib.Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> Source:
    """Reads a split.

    Args:
      folder: Of the prepared data set, with `dataset_info.json`.
      split: One of `split_names`.
      classes: Names of labels 1, 2, ...; those of the data set if None.
      report: Gets faults, and pictures with faults are left out; raised at the end if None.

    Returns:
      The source; image ids are those of the data set, or 1, 2, ... in order.
    """
    with reporting(report) as report:
        builder = _builder(folder)
        if builder.name == shapes.Shapes.name:
            return shapes.read_prepared(folder, split)
        labels = _labels(builder, folder)
        known = tuple(classes or labels.classes)
        rows = _open_rows(builder, split, folder)
        good: dict[int, Annotation] = {}
        for index in range(len(rows)):
            where = f"{folder}: record {index} of {split}"
            with report.noting(picture=index):
                row = _record(rows, index, where)
                try:
                    good[index] = _annotation(row, index, labels, known, where, report)
                except (IndexError, KeyError) as error:
                    raise DataError(f"{where}: has fields of different lengths.") from error
        ids = dict(zip(labels.classes, labels.category_ids, strict=False))
        unused = max([0, *labels.category_ids]) + 1
        return Source(
            name=f"{folder}:{split}",
            classes=known,
            annotations=tuple(good.values()),
            read=Records(folder, split, tuple(good)),
            category_ids=tuple(ids.get(name, unused + i) for i, name in enumerate(known))
            if ids
            else (),
            notes=(*((WHOLE,) if labels.of_pictures else ()), *report.notes()),
            keypoint_names=labels.keypoint_names,
            keypoint_pairs=labels.keypoint_pairs,
        )


@dataclasses.dataclass(frozen=True)
class Records:
    """Reads the pictures of a split; opens its files anew where it is unpickled."""

    folder: pathlib.Path
    split: str
    indices: tuple[int, ...]

    @functools.cached_property
    def _files(self) -> Any:
        return _open_rows(_builder(self.folder), self.split, self.folder)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of picture number `index`."""
        return pictures.decode(self.encoded(index), self.where(index))

    def encoded(self, index: int) -> bytes:
        """Picture number `index` as it is in the file."""
        return self._files[self.indices[index]]["image"]

    def where(self, index: int) -> str:
        """What messages call picture number `index`."""
        return f"{self.folder}: record {self.indices[index]} of {self.split}"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split, "indices": self.indices}


def _builder(folder: pathlib.Path) -> Any:
    try:
        builder = tfds.builder_from_directory(folder)
        kind = builder.info.file_format
        if kind is not tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(
                f"{folder}: is prepared as {kind}, which only TensorFlow reads. Prepare it with "
                "file_format='array_record'."
            )
        return builder
    except DataError:
        raise
    except Exception as error:  # Whatever broken files lead its readers to.
        raise DataError(f"{folder}: TFDS cannot open it ({error}). Prepare it again.") from error


def _labels(builder: Any, folder: pathlib.Path) -> _Labels:
    features = builder.info.features
    if {"image", "boxes", "labels"} <= set(features):
        try:
            data = json.loads((folder / "metadata.json").read_text())
            return _Labels(
                classes=tuple(map(str, data["classes"])),
                objects=None,
                category_ids=tuple(map(int, data["category_ids"])),
                keypoint_names=tuple(map(str, data["keypoint_names"])),
                keypoint_pairs=tuple((int(a), int(b)) for a, b in data["keypoint_pairs"]),
            )
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(
                f"{folder}/metadata.json: does not say the classes ({error})."
            ) from error
    for name, feature in features.items():
        inner: Any = getattr(feature, "feature", None)
        if (
            isinstance(inner, tfds.features.FeaturesDict)
            and "bbox" in inner
            and "image" in features
        ):
            label: Any = dict(inner).get("label")
            names = label.names if label else [name.removesuffix("s")]
            return _Labels(tuple(names), name, one_based=builder.name == "voc")
    label = features["label"] if {"image", "label"} <= set(features) else None
    if isinstance(label, tfds.features.ClassLabel):
        return _Labels(tuple(label.names), None, of_pictures=True)
    raise DataError(
        f"{folder}: has no picture with boxes or a class: its features are {', '.join(features)}. "
        "Convert it."
    )


def _open_rows(builder: Any, split: str, folder: pathlib.Path) -> Any:
    try:
        return shapes.open_rows(builder, split)
    except Exception as error:  # As in `_builder`.
        raise DataError(
            f"{folder}: TFDS cannot open {split} ({error}). Prepare it again."
        ) from error


def _record(rows: Any, index: int, where: str) -> dict[str, Any]:
    try:
        return rows[index]
    except Exception as error:  # Whatever a broken record leads its readers to.
        raise DataError(f"{where}: is broken ({error}). Write it again.") from error


def _annotation(
    row: dict[str, Any],
    index: int,
    labels: _Labels,
    classes: Sequence[str],
    where: str,
    report: Report,
) -> Annotation:
    size = pictures.parse_header(row["image"], where).size
    read = _whole if labels.of_pictures else _own if labels.objects is None else _relative
    return assemble(
        int(row.get("id", row.get("image/id", index + 1))),
        _text(row, "name") or _text(row, "image/filename") or f"record {index}",
        size,
        read(row, size, labels, classes, where),
        report,
        n_keypoints=len(labels.keypoint_names),
        captions=[text.decode(errors="replace") for text in row.get("captions", [])],
    )


def _own(
    row: dict[str, Any], size: tuple[int, int], labels: _Labels, classes: Sequence[str], where: str
) -> list[Found]:
    segments = _segments(row, size, where)
    return [
        Found(
            where=f"{where}: object {i}",
            box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            label=_label(int(row["labels"][i]), labels, classes, f"{where}: labels[{i}]"),
            crowd=bool(row["crowd"][i]),
            difficult=bool(row["difficult"][i]),
            area=float(row["areas"][i]),
            segment=segments[i] if segments else None,
            keypoints=row["keypoints"][i] if labels.keypoint_names else None,
        )
        for i, box in enumerate(row["boxes"])
    ]


def _segments(
    row: dict[str, Any], size: tuple[int, int], where: str
) -> list[Segment | None] | None:
    if not row.get("segments"):
        return None
    try:
        values = json.loads(row["segments"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: segments is not JSON ({error}). Write it again.") from error
    if not isinstance(values, list) or len(values) != len(row["labels"]):
        raise DataError(f"{where}: segments must be a list, one an object. Write it again.")
    return [parse_segmentation(v, size, f"{where}: segments[{i}]") for i, v in enumerate(values)]


def _relative(
    row: dict[str, Any], size: tuple[int, int], labels: _Labels, classes: Sequence[str], where: str
) -> list[Found]:
    objects: Any = row[str(labels.objects)]
    found, first = [], float(labels.one_based)
    for i, box in enumerate(objects["bbox"]):

        def of(key: str, i: int = i) -> Any:
            return objects[key][i] if key in objects else 0

        label = int(of("label")) + 1
        found.append(
            Found(
                where=f"{where}: {labels.objects}[{i}]",
                box=_pixels(box, size, first),
                label=_label(label, labels, classes, f"{where}: {labels.objects}[{i}].label"),
                crowd=bool(of("is_crowd")),
                difficult=bool(of("is_difficult") or of("invalid")),  # Of VOC, of WIDER FACE.
                area=float(of("area")) if "area" in objects else None,
            )
        )
    return found


def _whole(
    row: dict[str, Any], size: tuple[int, int], labels: _Labels, classes: Sequence[str], where: str
) -> list[Found]:
    label = _label(int(row["label"]) + 1, labels, classes, f"{where}: label")
    return [whole(where, size, label)]


def _pixels(
    box_yxyx: Float[np.ndarray, " 4"], size: tuple[int, int], first: float
) -> tuple[float, float, float, float]:
    y1, x1, y2, x2 = map(float, box_yxyx)
    return x1 * size[1] - first, y1 * size[0] - first, x2 * size[1], y2 * size[0]


def _label(label: int, labels: _Labels, classes: Sequence[str], where: str) -> int:
    """The label among `classes`."""
    if not 1 <= label <= len(labels.classes) or labels.classes[label - 1] not in classes:
        raise DataError(f"{where} = {label} is none of the classes {', '.join(classes)}.")
    return list(classes).index(labels.classes[label - 1]) + 1


def _text(row: dict[str, Any], key: str) -> str:
    return row[key].decode(errors="replace") if key in row else ""
