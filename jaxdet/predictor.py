"""From a trained detector and pictures of any size to results in the pictures' own pixels.

The detector sees pictures resized onto a canvas; the way back, the data set's own category ids, and
the evaluation of what was found are here, the same for every system.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import UInt8

from jaxdet import feeds
from jaxdet.data import pictures, sources
from jaxdet.data.pictures import PictureFiles
from jaxdet.data.records import Annotation, Source
from jaxdet.data.reports import Report, reporting
from jaxdet.data.resize import ShortSide
from jaxdet.metrics import coco, localization
from jaxdet.structures import Batch, Detections, Images
from jaxdet.systems.classifier import DetectOptions
from jaxdet.training import parallel, processes, steps
from jaxdet.viz import draw
from jaxdet.weights import detectors
from jaxdet.weights.description import SYSTEMS, Description, name_of

Rows = list[dict[str, Any]]
UNKNOWN = -1  # Stands for the number of a class that a data set does not have.


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A detector, compiled for all devices, and what its numbers mean."""

    detect: Callable[[Any, Images], Detections]
    """`detect(variables, images)`, the batch divisible by the number of devices."""
    classes: tuple[str, ...]
    """Name of label 1, 2, ..."""
    category_ids: tuple[int, ...]
    """Number of label 1, 2, ... in results files."""
    canvases: tuple[tuple[int, int], ...] | ShortSide
    """(height, width) of the arrays that pictures are resized onto, or the rule for both sizes."""


def from_description(description: Description) -> Predictor:
    """Compiles a system's `detect`.

    Args:
      description: Of the system.
    """
    system = SYSTEMS[name_of(description.architecture)]
    model = system.build(len(description.classes), description.architecture)
    return Predictor(
        parallel.parallel_map(functools.partial(system.detect, model, options=description.detect)),
        description.classes,
        description.category_ids,
        description.canvases,
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
    detector = detectors.load_checkpoint(path)
    return from_detector(detector, score_threshold=score_threshold)


def from_detector(
    detector: detectors.Detector, *, score_threshold: float | None = None
) -> tuple[Predictor, Any]:
    """Compiles a detector, such as one of published weights.

    Args:
      detector: From `weights.detectors.load`.
      score_threshold: Less likely detections are left out; as the detector has it if None.

    Returns:
      The predictor and its variables.
    """
    description, variables = detector
    if score_threshold is not None:
        detect = description.detect._replace(score_threshold=score_threshold)
        description = description._replace(detect=detect)
    return from_description(description), variables


def detect_source(
    predictor: Predictor,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Rows:
    """Detects on every picture of a source; of several processes, each on its share.

    Args:
      predictor: From `load`.
      variables: Of the model.
      source: Pictures; of the annotations, sizes and ids are looked at. Its category ids are
        taken where it has classes, all of which the predictor must know; what it finds of other
        classes is left out.
      batch_size: Pictures at once, over all processes, rounded up to a multiple of the devices.
      progress: Called with the number of pictures that this process has done so far.

    Returns:
      Rows of a COCO results file, boxes in pixels of the pictures: all of them in every process,
      in the same order for any number of processes.
    """
    category_ids = _category_ids(predictor, source)
    if not len(source):
        return []
    rounded = _rounded(min(batch_size, len(source)))
    batches = feeds.evaluation(
        source, canvases=predictor.canvases, batch_size=rounded, max_objects=1
    )
    rows, done = [], 0
    for batch in batches():
        detections = jax.device_get(predictor.detect(variables, batch.images))
        shown = feeds.pictures_of(batch, source)
        rows += coco.results_from_detections(
            detections,
            image_ids=shown.image_ids,
            scales=shown.scales,
            sizes=shown.sizes,
            category_ids=category_ids,
        )
        done += sum(image_id is not None for image_id in shown.image_ids)
        if progress:
            progress(done)
    rows = [row for row in rows if row["category_id"] != UNKNOWN]
    return feeds.gathered(rows, source, canvases=predictor.canvases)


def judge_of(description: Description, finder: Predictor) -> Predictor:
    """The predictor of the measures: they are of five guesses, whatever is shown.

    Args:
      description: Of a classifier or a localizer.
      finder: Compiled from it; it is the judge where it makes as many guesses.
    """
    if description.detect == DetectOptions():
        return finder
    return from_description(description._replace(detect=DetectOptions()))


def measure_localization(
    predictor: Predictor,
    variables: Any,
    batches: Iterable[Batch],
    *,
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Holds guesses about pictures against what is in them, see `metrics.localization.sums`.

    Args:
      predictor: Of a localizer, or of a classifier, whose boxes are the whole pictures.
      variables: Of the model.
      batches: Of this process's share of the pictures.
      classes: Of the batches' labels 1, 2, ...; the predictor's if None.

    Returns:
      Means by name, over all processes.
    """
    sums: steps.Sums = {}
    count = jax.jit(localization.sums)
    known = {name: i + 1 for i, name in enumerate(classes or predictor.classes)}
    labels = np.array([0, *(known.get(name, UNKNOWN) for name in predictor.classes)], np.int32)
    for batch in batches:
        guesses = jax.device_get(predictor.detect(variables, batch.images))
        guesses = guesses._replace(labels=labels[guesses.labels])
        sums = steps.merge(sums, jax.device_get(count(guesses, batch.instances)))
    sums = functools.reduce(steps.merge, processes.gather(sums), {})
    return {name: float(value) for name, value in steps.means(sums).items()}


def measure_source(
    predictor: Predictor, variables: Any, source: Source, *, batch_size: int
) -> dict[str, float]:
    """`measure_localization` of the pictures of a source.

    Args:
      predictor: As there.
      variables: Of the model.
      source: Pictures, whose classes the predictor knows, in any order.
      batch_size: As in `detect_source`.
    """
    _category_ids(predictor, source)
    batches = feeds.evaluation(
        source, canvases=predictor.canvases, batch_size=_rounded(min(batch_size, len(source)))
    )
    return measure_localization(predictor, variables, batches(), classes=source.classes)


def _rounded(batch_size: int) -> int:
    """Up to a multiple of the devices."""
    n_devices = jax.device_count()
    return -(-batch_size // n_devices) * n_devices


def _category_ids(predictor: Predictor, source: Source) -> Sequence[int]:
    """The source's numbers of the predictor's labels."""
    if not source.classes:
        return predictor.category_ids
    if unknown := [name for name in source.classes if name not in predictor.classes]:
        raise ValueError(
            f"{source.name}: of its classes, the checkpoint does not know {', '.join(unknown)}; "
            f"it knows {', '.join(predictor.classes)}."
        )
    numbers = dict(zip(source.classes, source.category_ids, strict=True))
    return [numbers.get(name, UNKNOWN) for name in predictor.classes]


def picture_source(paths: Sequence[pathlib.Path], *, report: Report | None = None) -> Source:
    """A source of picture files without annotations, turned as their EXIF data says.

    Args:
      paths: Picture files, or folders, whose pictures are taken, those of sub folders too.
      report: Gets what cannot be read, which is left out; raised at the end if None.

    Raises:
      ValueError: Where there is no such file, or a folder holds no picture.
    """
    named = [file for path in paths for file in _pictures_in(pathlib.Path(path))]
    sizes: dict[pathlib.Path, tuple[int, int]] = {}
    with reporting(report) as faults:
        for file in named:
            with faults.noting(picture=file):
                height, width, _ = pictures.read_picture(file, orientation=True).shape
                sizes[file] = (height, width)
    files = [file for file in named if file in sizes]
    read = PictureFiles(tuple(files), upright=True)
    none = np.zeros(0, bool)
    annotations = tuple(
        Annotation(
            image_id=i + 1,
            name=str(file),
            size=sizes[file],
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
    boxes, labels, scores = _arrays(shown, category_ids)
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
        ignored=~annotation.objects,
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
    by_picture, source = group_by_picture(rows), spread(source, n_pictures)
    pairs = []
    for image, annotation in (source[index] for index in range(len(source))):
        found = by_picture.get(annotation.image_id, [])
        truth = draw_truth(image, annotation, classes=source.classes)
        predicted = draw_results(
            image, found, classes=source.classes, category_ids=source.category_ids
        )
        pair = draw.side_by_side(truth, predicted)
        scale = min(1, 2 * width / pair.shape[1])
        pairs.append(cv2.resize(pair, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return draw.contact_sheet(pairs, columns)


def spread(source: Source, n_pictures: int) -> Source:
    """Some pictures, spread evenly over a source; all if it has no more."""
    chosen = np.linspace(0, len(source) - 1, min(n_pictures, len(source))).astype(int).tolist()
    return sources.select(source, chosen, name=source.name)


def progress_sheet(
    source: Source, results: Mapping[str, Sequence[Mapping[str, Any]]], *, n_columns: int = 8
) -> UInt8[np.ndarray, "h w 3"]:
    """Best guesses over the time of training: a row for each picture.

    Args:
      source: A few annotated pictures, whose objects are drawn dashed.
      results: By title of the column, rows of a COCO results file.
      n_columns: At most so many of the results are shown, spread evenly, the last among them.
    """
    titles = list(results)
    kept = np.linspace(0, len(titles) - 1, min(n_columns, len(titles))).round().astype(int)
    columns = {titles[i]: group_by_picture(results[titles[i]]) for i in kept.tolist()}
    cells = []
    for image, annotation in (source[index] for index in range(len(source))):
        objects = len(annotation.labels)
        for title, by_picture in columns.items():
            rows = by_picture.get(annotation.image_id, [])
            boxes, labels, _ = _arrays(rows[:objects], source.category_ids)
            cell = draw.draw_boxes(
                image,
                np.concatenate([annotation.boxes, boxes]),
                np.concatenate([annotation.labels, labels]),
                source.classes,
                ignored=np.arange(objects + len(boxes)) < objects,
                magnify=max(1, 256 // max(image.shape[:2])),
            )
            cells.append(draw.titled(cell, title))
    return draw.contact_sheet(cells, len(columns), margin=4)


def _arrays(
    rows: Sequence[Mapping[str, Any]], category_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (xyxy), labels and scores of rows of a results file."""
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([category_ids.index(row["category_id"]) + 1 for row in rows], np.int32)
    return boxes, labels, np.array([row["score"] for row in rows], np.float32)
