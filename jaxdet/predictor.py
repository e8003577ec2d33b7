"""From a trained detector and pictures of any size to results in the pictures' own pixels.

The detector sees pictures resized onto a canvas; the way back, the data set's own category ids, and
the evaluation of what was found are here, the same for every system.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import UInt8

from jaxdet.data import pictures, pipeline
from jaxdet.data.records import Annotation, Source
from jaxdet.metrics import coco
from jaxdet.proposals import rpn
from jaxdet.structures import Detections, Images
from jaxdet.systems import faster_rcnn
from jaxdet.training import checkpoints, parallel
from jaxdet.viz import draw

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A detector, compiled for all devices, and what its numbers mean."""

    detect: Callable[[Any, Images], Detections]
    """`detect(variables, images)`, the batch divisible by the number of devices."""
    classes: tuple[str, ...]
    """Name of label 1, 2, ..."""
    category_ids: tuple[int, ...]
    """Number of label 1, 2, ... in results files."""
    canvases: tuple[tuple[int, int], ...]
    """(height, width) of the arrays that pictures are resized onto."""


def faster_rcnn_predictor(
    architecture: faster_rcnn.Architecture,
    *,
    classes: Sequence[str],
    category_ids: Sequence[int],
    canvases: Sequence[tuple[int, int]],
    options: faster_rcnn.DetectOptions,
) -> Predictor:
    """Compiles Faster R-CNN's `detect`; arguments as in `Predictor` and `faster_rcnn.detect`."""
    model = faster_rcnn.build(len(classes), architecture)
    detect = functools.partial(faster_rcnn.detect, model, options=options)
    return Predictor(
        parallel.parallel_map(detect), tuple(classes), tuple(category_ids), tuple(canvases)
    )


def load(
    path: str | pathlib.Path, *, score_threshold: float | None = None
) -> tuple[Predictor, Any]:
    """Opens what training wrote.

    Args:
      path: A run, a series of checkpoints or one of them; see `checkpoints.load_variables`.
      score_threshold: Less likely detections are left out; that of the training run if None.

    Returns:
      The predictor and its variables.

    Raises:
      ValueError: Where there is no checkpoint, or one of another kind.
    """
    variables, metadata = checkpoints.load_variables(path)
    if metadata.get("system") != "faster_rcnn":
        raise ValueError(
            f"{path}: the checkpoint is of system {metadata.get('system')!r}; "
            "this predictor knows 'faster_rcnn'."
        )
    detect = metadata["detect"]
    # JSON makes a list of the inner record.
    options = faster_rcnn.DetectOptions(
        **detect | {"proposals": rpn.ProposalOptions(*detect["proposals"])}
    )
    if score_threshold is not None:
        options = options._replace(score_threshold=score_threshold)
    predictor = faster_rcnn_predictor(
        faster_rcnn.Architecture(**_tuples(metadata["architecture"])),
        classes=metadata["classes"],
        category_ids=metadata["category_ids"],
        canvases=_tuples(metadata["canvases"]),
        options=options,
    )
    return predictor, variables


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def detect_source(
    predictor: Predictor,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Rows:
    """Detects on every picture of a source.

    Args:
      predictor: From `load`.
      variables: Of the model.
      source: Pictures; of the annotations, sizes and ids are looked at. Its category ids are
        taken where it has classes, which must then be the predictor's.
      batch_size: Pictures at once, rounded up to a multiple of the devices.
      progress: Called with the number of pictures done so far.

    Returns:
      Rows of a COCO results file, boxes in pixels of the pictures.
    """
    if source.classes and source.classes != predictor.classes:
        raise ValueError(
            f"{source.name} has the classes {', '.join(source.classes)}; the checkpoint knows "
            f"{', '.join(predictor.classes)}."
        )
    n_devices = jax.local_device_count()
    rounded = -(-min(batch_size, len(source)) // n_devices) * n_devices
    batches = pipeline.eval_pipeline(
        source, canvases=predictor.canvases, batch_size=rounded, max_objects=1
    )
    rows, done = [], 0
    for batch in pipeline.iterate(batches, threads=1):
        detections = jax.device_get(predictor.detect(variables, batch.images))
        annotations = [source.annotations[i] if i >= 0 else None for i in batch.records]
        sizes = np.array([a.size if a else (0, 0) for a in annotations], np.int32)
        shown = np.maximum(batch.images.sizes, 1)
        rows += coco.results_from_detections(
            detections,
            image_ids=[a.image_id if a else None for a in annotations],
            scales=(sizes / shown)[:, ::-1].astype(np.float32),
            sizes=sizes,
            category_ids=source.category_ids or predictor.category_ids,
        )
        done += sum(a is not None for a in annotations)
        if progress:
            progress(done)
    return rows


def picture_source(paths: Sequence[pathlib.Path]) -> Source:
    """A source of picture files without annotations, turned as their EXIF data says.

    Args:
      paths: Picture files, or folders, whose pictures are taken, those of sub folders too.

    Raises:
      ValueError: Where there is no such file, or a folder holds no picture.
    """
    files = [file for path in paths for file in _pictures_in(pathlib.Path(path))]
    read = functools.partial(_read_upright, tuple(files))
    none = np.zeros(0, bool)
    annotations = tuple(
        Annotation(
            image_id=i + 1,
            name=str(file),
            size=read(i).shape[:2],
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int32),
            crowd=none,
            difficult=none,
        )
        for i, file in enumerate(files)
    )
    return Source("pictures", (), annotations, read)


def _pictures_in(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such file or folder.")
    found = sorted(f for f in path.rglob("*") if f.suffix.lower() in pictures.SUFFIXES)
    if not found:
        raise ValueError(f"{path}: holds no pictures ({', '.join(sorted(pictures.SUFFIXES))}).")
    return found


def _read_upright(files: Sequence[pathlib.Path], index: int) -> UInt8[np.ndarray, "h w 3"]:
    return pictures.read_picture(files[index], orientation=True)


def draw_results(
    image: UInt8[np.ndarray, "h w 3"],
    rows: Sequence[Mapping[str, Any]],
    *,
    classes: Sequence[str],
    category_ids: Sequence[int],
    score_threshold: float = 0.5,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws one picture's rows of a COCO results file.

    Args:
      image: RGB.
      rows: Of this picture.
      classes: Name of label 1, 2, ...
      category_ids: Number of label 1, 2, ... in `rows`.
      score_threshold: Less likely ones are not drawn.
    """
    shown = [row for row in rows if row["score"] >= score_threshold]
    boxes = np.array([row["bbox"] for row in shown], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([category_ids.index(row["category_id"]) + 1 for row in shown], np.int32)
    scores = np.array([row["score"] for row in shown], np.float32)
    return draw.draw_boxes(image, boxes, labels, classes, scores=scores)


def draw_truth(
    image: UInt8[np.ndarray, "h w 3"], annotation: Annotation, *, classes: Sequence[str]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws one picture's ground truth; crowds and difficult objects are dashed."""
    return draw.draw_boxes(
        image,
        annotation.boxes,
        annotation.labels,
        classes,
        ignored=annotation.crowd | annotation.difficult,
    )


def group_by_picture(rows: Sequence[Mapping[str, Any]]) -> dict[int, Rows]:
    """Returns the rows of a COCO results file by image id."""
    grouped: dict[int, Rows] = {}
    for row in rows:
        grouped.setdefault(row["image_id"], []).append(dict(row))
    return grouped


def contact_sheet(
    source: Source,
    rows: Sequence[Mapping[str, Any]],
    *,
    n_pictures: int = 8,
    columns: int = 2,
    width: int = 640,
) -> UInt8[np.ndarray, "h w 3"]:
    """Ground truth beside predictions, for pictures spread evenly over a source.

    Args:
      source: Annotated pictures.
      rows: Of a COCO results file.
      n_pictures: How many are drawn.
      columns: Of the sheet.
      width: Larger pictures are shrunk to this, pixels.
    """
    by_picture = group_by_picture(rows)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(n_pictures, len(source))).astype(int))
    pairs = []
    for index in chosen:
        image, annotation = source[int(index)]
        found = by_picture.get(annotation.image_id, [])
        truth = draw_truth(image, annotation, classes=source.classes)
        predicted = draw_results(
            image, found, classes=source.classes, category_ids=source.category_ids
        )
        pair = draw.side_by_side(truth, predicted)
        scale = min(1, 2 * width / pair.shape[1])
        pairs.append(cv2.resize(pair, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return draw.contact_sheet(pairs, columns)
