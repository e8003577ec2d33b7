"""COCO results files, and the COCO numbers of boxes.

row          One detection: {"image_id", "category_id", "bbox": [x, y, w, h], "score"}, in pixels
             of the original picture. A results file is a JSON list of rows.
AP           Mean over classes, over IoU 0.50, 0.55, ... 0.95 and over 101 recalls of the precision.
AR           Mean over classes and the same IoUs of the highest recall.
"""

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float, Int

from jaxdet.structures import Detections

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
MAX_DETECTIONS = 100  # Of one class in one picture; those of lower score do not count.


class Evaluation(NamedTuple):
    """How good detections are; each number is from 0 to 1, NaN where there is nothing to find."""

    metrics: dict[str, float]  # The twelve of `METRICS`.
    per_class: dict[str, dict[str, float]]  # {class name: {"AP": ..., "AP50": ...}}
    recall: Float[np.ndarray, " r"]  # 0, 0.01, ... 1.
    precision: Float[np.ndarray, "r k"]  # At that recall, mean over the ten IoU thresholds.
    precision50: Float[np.ndarray, "r k"]  # The same at IoU 0.5; its mean over r is AP50.


def results_from_detections(
    detections: Detections,
    *,
    image_ids: Sequence[int | None],
    scales: Float[np.ndarray, "b 2"],
    sizes: Int[np.ndarray, "b 2"],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns a batch of detections as the rows of a COCO results file.

    Args:
      detections: One batch, boxes in pixels of the canvas; padded rows are left out.
      image_ids: Id of each picture in its data set; None or a negative one is a padded picture.
      scales: What x and y of a box are multiplied with to be pixels of the original picture.
      sizes: (height, width) of the original pictures, which boxes are clipped to.
      category_ids: Id in the data set of label 1, of label 2, ...

    Returns:
      Rows in the order of the batch, best first within a picture. Coordinates are rounded to
      0.001 px, scores to 1e-7.
    """
    x, y = np.asarray(scales, np.float64)[:, None, 0], np.asarray(scales, np.float64)[:, None, 1]
    height, width = np.asarray(sizes)[:, None, 0], np.asarray(sizes)[:, None, 1]
    boxes = np.asarray(detections.boxes, np.float64) * np.stack([x, y, x, y], axis=-1)
    boxes = np.clip(boxes, 0, np.stack([width, height, width, height], axis=-1))
    boxes[..., 2:] -= boxes[..., :2]
    scores, labels, valid = map(np.asarray, detections[1:])
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[labels[i, j] - 1]),
            "bbox": [round(float(side), 3) for side in boxes[i, j]],
            "score": round(float(scores[i, j]), 7),
        }
        for i, image_id in enumerate(image_ids)
        if image_id is not None and image_id >= 0
        for j in np.flatnonzero(valid[i])
    ]


def write_results(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a COCO results file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(list(rows), allow_nan=False, separators=(",", ":")))
    os.replace(unfinished, path)


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a COCO results file of boxes; a fault is a ValueError naming file, row and field."""
    try:
        rows = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # Not JSON, or not even text.
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of results, got {type(rows).__name__}")
    for i, row in enumerate(rows):
        _check_row(row, f"{path}: row {i}")
    return rows


def evaluate_boxes(
    ground_truth: Mapping[str, Any],
    results: str | os.PathLike | Sequence[Mapping[str, Any]],
) -> Evaluation:
    """Returns the COCO numbers of detected boxes.

    Args:
      ground_truth: A COCO data set: "images", "categories" and "annotations" with "area" and
        "iscrowd". What lies in a crowd annotation counts neither for nor against. An annotation's
        "ignore" is overruled by its "iscrowd", as in COCO's own tool.
      results: Rows, or the path of a results file.

    Returns:
      The numbers. Without any results they are 0, not NaN.

    Source:
      COCO (Lin et al. 2014, arXiv:1405.0312) and its evaluation code, cocoapi `cocoeval.py`.
    """
    if isinstance(results, (str, os.PathLike)):
        rows, where = read_results(results), f"{results}: "
    else:
        rows, where = [dict(row) for row in results], ""
        for i, row in enumerate(rows):
            _check_row(row, f"row {i}")
    _check_ids(ground_truth, rows, where)
    truth = COCO(copy.deepcopy(dict(ground_truth)))
    found = COCOeval_faster(truth, truth.loadRes(rows), "bbox")
    found.params.maxDets = [1, 10, MAX_DETECTIONS]
    found.run()
    # Thresholds, recalls, classes, areas (all, small, ...), detections allowed (1, 10, 100).
    precision = np.asarray(found.eval["precision"], np.float64)[..., 0, 2]
    precision = np.where(precision < 0, np.nan, precision)
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    return Evaluation(
        metrics={n: _number(v) for n, v in zip(METRICS, found.stats[:12], strict=True)},
        per_class={
            names[id_]: {
                "AP": float(precision[..., i].mean()),
                "AP50": float(precision[0, :, i].mean()),
            }
            for i, id_ in enumerate(found.params.catIds)
        },
        recall=np.asarray(found.params.recThrs, np.float64),
        precision=precision.mean(axis=0),
        precision50=precision[0],
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns {"metrics", "per_class"} of an evaluation for a JSON file, with null for NaN."""

    def plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
        return {name: None if math.isnan(x) else x for name, x in numbers.items()}

    per_class = {name: plain(numbers) for name, numbers in evaluation.per_class.items()}
    return {"metrics": plain(evaluation.metrics), "per_class": per_class}


def as_table(evaluation: Evaluation) -> str:
    """Returns the twelve numbers and each class's AP as lines of text; "-" is nothing to find."""

    def cells(numbers: Mapping[str, float]) -> list[str]:
        return ["-" if math.isnan(x) else f"{x:.3f}" for x in numbers.values()]

    lines = []
    for half in (METRICS[:6], METRICS[6:]):
        lines.append("".join(f"{name:>11}" for name in half))
        values = cells({name: evaluation.metrics[name] for name in half})
        lines.append("".join(f"{value:>11}" for value in values))
    width = max(map(len, [*evaluation.per_class, "class"]))
    lines.append(f"{'class':{width}}{'AP':>11}{'AP50':>11}")
    for name, numbers in evaluation.per_class.items():
        lines.append(f"{name:{width}}" + "".join(f"{value:>11}" for value in cells(numbers)))
    return "\n".join(lines)


def _number(value: float) -> float:
    """NaN for the evaluator's -1, "there is no such object"."""
    return math.nan if value < 0 else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_row(row: Any, where: str) -> None:
    """Raises ValueError unless `row` is a result of a box."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object, got {row!r}")
    for field in ("image_id", "category_id", "bbox", "score"):
        if field not in row:
            raise ValueError(f"{where}: no {field!r}, got {sorted(row)}")
    for field in ("image_id", "category_id"):
        if not isinstance(row[field], int) or isinstance(row[field], bool):
            raise ValueError(f"{where}: {field} should be a whole number, got {row[field]!r}")
    if not _is_number(row["score"]):
        raise ValueError(f"{where}: score should be a finite number, got {row['score']!r}")
    box = row["bbox"]
    if not (isinstance(box, Sequence) and len(box) == 4 and all(map(_is_number, box))):
        raise ValueError(f"{where}: bbox should be four finite numbers x, y, w, h, got {box!r}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox should have w >= 0 and h >= 0, got {box!r}")


def _check_ids(truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises ValueError where a row is about a picture or class that the data set has not."""
    for field, things in (("image_id", "images"), ("category_id", "categories")):
        known = {thing["id"] for thing in truth[things]}
        for i, row in enumerate(rows):
            if row[field] not in known:
                raise ValueError(f"{where}row {i}: {field} {row[field]} is not in the data set")
