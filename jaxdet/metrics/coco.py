"""COCO results files, and the COCO numbers of boxes, masks and keypoints.

row          One detection: {"image_id", "category_id", "bbox": [x, y, w, h], "score"}, in pixels
             of the original picture; a mask is "segmentation": {"size": [h, w], "counts": "..."},
             keypoints are "keypoints": [x, y, v, ...]. A results file is a JSON list of rows.
AP           Mean over classes, over IoU 0.50, 0.55, ... 0.95 and over 101 recalls of the precision.
AR           Mean over classes and the same IoUs of the highest recall.
OKS          Takes the place of the IoU for keypoints: mean of exp(-d^2 / (2 area (2 sigma)^2)) over
             the labelled keypoints of the true object, d the distance in pixels.
"""

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool, Float, Int

from jaxdet import atomic
from jaxdet.geometry import rle
from jaxdet.structures import Detections

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
KEYPOINT_METRICS = (
    *("AP", "AP50", "AP75", "AP_medium", "AP_large"),
    *("AR", "AR50", "AR75", "AR_medium", "AR_large"),
)
# Of one class in one picture; those of lower score do not count.
MAX_DETECTIONS = 100
MAX_POSES = 20
# COCO's, of its 17 keypoints of a person: from the nose and the eyes to the ankles.
PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


class Evaluation(NamedTuple):
    """How good detections are; each number is from 0 to 1, NaN where there is nothing to find."""

    metrics: dict[str, float]  # The twelve of `METRICS`, or of `KEYPOINT_METRICS`.
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


def results_from_poses(
    joints: Float[np.ndarray, "b n j 2"],
    labels: Int[np.ndarray, "b n"],
    valid: Bool[np.ndarray, "b n"],
    *,
    image_ids: Sequence[int | None],
    scales: Float[np.ndarray, "b 2"],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns a batch of poses as the rows of a COCO results file, each as sure as another.

    Args:
      joints: (x, y), pixels of the canvas.
      labels: Of the objects.
      valid: Which of them get a row.
      image_ids: As in `results_from_detections`, and all that follow.
      scales: What x and y are multiplied with.
      category_ids: Id in the data set of label 1, of label 2, ...

    Returns:
      Rows in the order of the batch; coordinates are rounded to 0.01 px.
    """
    points = np.asarray(joints, np.float64) * np.asarray(scales, np.float64)[:, None, None]
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[labels[i, n] - 1]),
            "keypoints": [x for point in points[i, n].round(2).tolist() for x in (*point, 1)],
            "score": 1.0,
        }
        for i, image_id in enumerate(image_ids)
        if image_id is not None and image_id >= 0
        for n in np.flatnonzero(valid[i])
    ]


def write_results(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a COCO results file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as unfinished:
        unfinished.write_text(json.dumps(list(rows), allow_nan=False, separators=(",", ":")))


def read_results(path: str | os.PathLike, *, field: str = "bbox") -> list[dict[str, Any]]:
    """Reads a COCO results file; a fault is a ValueError naming file, row and field.

    Args:
      path: The file.
      field: What each row must have: "bbox", "segmentation" or "keypoints".

    Returns:
      The rows.
    """
    try:
        rows = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # Not JSON, or not even text.
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of results, got {type(rows).__name__}")
    for i, row in enumerate(rows):
        _check_row(row, f"{path}: row {i}", field)
    return rows


Results = str | os.PathLike | Sequence[Mapping[str, Any]]


def evaluate_boxes(ground_truth: Mapping[str, Any], results: Results) -> Evaluation:
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
    truth = _without(ground_truth, "segmentation", "keypoints")
    return _evaluate(truth, _rows(ground_truth, results, "bbox"), "bbox", METRICS)


def evaluate_masks(ground_truth: Mapping[str, Any], results: Results) -> Evaluation:
    """Returns the COCO numbers of detected masks.

    Args:
      ground_truth: As in `evaluate_boxes`, with a "segmentation" of each annotation.
      results: Rows with run lengths, or the path of a results file.

    Returns:
      The numbers; sizes are areas of masks.

    Source:
      As in `evaluate_boxes`.

    Departures:
      An object without "segmentation" is a crowd in its box: it counts neither way.
    """
    truth = _without(ground_truth, "keypoints")
    truth["annotations"] = [
        row if row.get("segmentation") else row | {"segmentation": _as_polygon(row), "iscrowd": 1}
        for row in truth["annotations"]
    ]
    rows = _rows(ground_truth, results, "segmentation")
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    for i, row in enumerate(rows):
        if list(row["segmentation"]["size"]) != sizes[row["image_id"]]:
            raise ValueError(
                f"row {i}: segmentation has size {row['segmentation']['size']}, its picture "
                f"{sizes[row['image_id']]}"
            )
    return _evaluate(truth, rows, "segm", METRICS)


def evaluate_keypoints(
    ground_truth: Mapping[str, Any], results: Results, *, sigmas: Sequence[float]
) -> Evaluation:
    """Returns the COCO numbers of detected keypoints.

    Args:
      ground_truth: As in `evaluate_boxes`, with "keypoints" [x, y, v, ...] and the "area" of each
        annotation; what has none that is labelled (v > 0) counts neither way.
      results: Rows with keypoints, or the path of a results file.
      sigmas: How far apart people's clicks are, in terms of the object's size, of each keypoint;
        `PERSON_SIGMAS` are COCO's.

    Returns:
      The ten numbers, with the OKS in place of the IoU.

    Source:
      COCO's keypoint evaluation, https://cocodataset.org/#keypoints-eval.
    """
    n_numbers = 3 * len(sigmas)
    truth = _without(ground_truth, "segmentation")
    for i, row in enumerate(truth["annotations"]):
        row.setdefault("keypoints", [0] * n_numbers)
        if len(row["keypoints"]) != n_numbers:
            raise ValueError(
                f"sigmas must be one a keypoint: got {len(sigmas)}, and annotation {i} has "
                f"{len(row['keypoints'])} numbers"
            )
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2::3])
    rows = _rows(ground_truth, results, "keypoints")
    for i, row in enumerate(rows):
        if len(row["keypoints"]) != n_numbers:
            raise ValueError(f"row {i}: {len(row['keypoints'])} numbers, {n_numbers} expected")
    return _evaluate(truth, rows, "keypoints", KEYPOINT_METRICS, sigmas=sigmas)


def _rows(truth: Mapping[str, Any], results: Results, field: str) -> list[dict[str, Any]]:
    """Checked rows with nothing but what is evaluated; COCO's tool guesses by what is there."""
    if isinstance(results, (str, os.PathLike)):
        rows, where = read_results(results, field=field), f"{results}: "
    else:
        rows, where = [dict(row) for row in results], ""
        for i, row in enumerate(rows):
            _check_row(row, f"row {i}", field)
    _check_ids(truth, rows, where)
    return [{key: row[key] for key in ("image_id", "category_id", "score", field)} for row in rows]


def _without(truth: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    """A copy of the ground truth, without fields that take long to copy."""
    copied = copy.deepcopy({k: v for k, v in truth.items() if k != "annotations"})
    copied["annotations"] = [
        {k: copy.copy(v) for k, v in row.items() if k not in fields} for row in truth["annotations"]
    ]
    return copied


def _as_polygon(row: Mapping[str, Any]) -> list[list[float]]:
    x, y, w, h = map(float, row["bbox"])
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _evaluate(
    truth: dict[str, Any],
    rows: list[dict[str, Any]],
    kind: Literal["bbox", "segm", "keypoints"],
    names: Sequence[str],
    *,
    sigmas: Sequence[float] | None = None,
) -> Evaluation:
    known = COCO(truth)
    found = COCOeval_faster(known, known.loadRes(rows), kind)
    found.params.maxDets = [1, 10, MAX_DETECTIONS]
    if sigmas is not None:
        found.params.maxDets = [MAX_POSES]
        found.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
    found.run()
    # Thresholds, recalls, classes, areas (all, small, ...), detections allowed (1, 10, 100).
    precision = np.asarray(found.eval["precision"], np.float64)[..., 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    classes = {c["id"]: c["name"] for c in truth["categories"]}
    return Evaluation(
        metrics={n: _number(v) for n, v in zip(names, found.stats[: len(names)], strict=True)},
        per_class={
            classes[id_]: {
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
    """Returns the numbers and each class's AP as lines of text; "-" is nothing to find."""

    def cells(numbers: Mapping[str, float]) -> list[str]:
        return ["-" if math.isnan(x) else f"{x:.3f}" for x in numbers.values()]

    lines = []
    names = list(evaluation.metrics)
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
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


def _check_row(row: Any, where: str, field: str) -> None:
    """Raises ValueError unless `row` is a result with this field."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object, got {row!r}")
    for name in ("image_id", "category_id", field, "score"):
        if name not in row:
            raise ValueError(f"{where}: no {name!r}, got {sorted(row)}")
    for name in ("image_id", "category_id"):
        if not isinstance(row[name], int) or isinstance(row[name], bool):
            raise ValueError(f"{where}: {name} should be a whole number, got {row[name]!r}")
    if not _is_number(row["score"]):
        raise ValueError(f"{where}: score should be a finite number, got {row['score']!r}")
    {"bbox": _check_box, "segmentation": _check_runs, "keypoints": _check_keypoints}[field](
        row[field], where
    )


def _check_box(box: Any, where: str) -> None:
    if not (isinstance(box, Sequence) and len(box) == 4 and all(map(_is_number, box))):
        raise ValueError(f"{where}: bbox should be four finite numbers x, y, w, h, got {box!r}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox should have w >= 0 and h >= 0, got {box!r}")


def _check_runs(runs: Any, where: str) -> None:
    try:
        rle.compress(runs)
    except ValueError as error:
        raise ValueError(f"{where}: segmentation: {error}") from error


def _check_keypoints(values: Any, where: str) -> None:
    if not (isinstance(values, Sequence) and all(map(_is_number, values))):
        raise ValueError(
            f"{where}: keypoints should be finite numbers x, y, v, ..., got {values!r}"
        )


def _check_ids(truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises ValueError where a row is about a picture or class that the data set has not."""
    for field, things in (("image_id", "images"), ("category_id", "categories")):
        known = {thing["id"] for thing in truth[things]}
        for i, row in enumerate(rows):
            if row[field] not in known:
                raise ValueError(f"{where}row {i}: {field} {row[field]} is not in the data set")
