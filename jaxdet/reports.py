"""What scripts show of a detector they train: at each evaluation, and at the end on test data."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdet import predictor
from jaxdet.data import sources
from jaxdet.data.records import Source
from jaxdet.data.selection import Selection, open_split
from jaxdet.metrics import coco
from jaxdet.predictor import Predictor, Rows
from jaxdet.training import checkpoints, parallel, processes
from jaxdet.training.logging import MetricsLog
from jaxdet.viz import draw


def watch(
    finder: Predictor,
    source: Source,
    *,
    n_pictures: int,
    batch_size: int,
    log: MetricsLog,
    columns: int = 2,
) -> Callable[[Any, int], Rows]:
    """Returns a function that detects on a source, and draws some of its pictures.

    Args:
      finder: The detector.
      source: Pictures.
      n_pictures: How many are drawn, ground truth beside predictions.
      batch_size: As in `predictor.detect_source`.
      log: Gets the drawing, and so does `pictures/val_STEP.png` in its folder.
      columns: Of the drawing.

    Returns:
      From (variables, step) to all rows of a COCO results file.
    """

    def look(variables: Any, step: int) -> Rows:
        rows = predictor.detect_source(finder, variables, source, batch_size=batch_size)
        sheet = predictor.contact_sheet(source, rows, n_pictures=n_pictures, columns=columns)
        draw.save_png(log.directory / "pictures" / f"val_{step:06d}.png", sheet)
        log.image(step, "val", sheet)
        return rows

    return look


class Tested(NamedTuple):
    """The test split, and what the best checkpoint of a run found on it."""

    variables: Any  # On all devices.
    source: Source
    rows: Rows  # Of a COCO results file.


def on_test(
    finder: Predictor,
    selection: Selection,
    *,
    out: pathlib.Path,
    batch_size: int,
    n_pictures: int,
    columns: int = 2,
) -> Tested:
    """Detects on the test split; writes `detections.json` and `pictures/test.png`.

    Args:
      finder: The detector.
      selection: Of the data.
      out: The run's folder, with its checkpoints.
      batch_size: As in `predictor.detect_source`.
      n_pictures: How many are drawn, ground truth beside predictions.
      columns: Of the drawing.
    """
    test = open_split(selection, selection.test_split, classes=finder.classes)
    print(sources.describe(test), flush=True)
    variables, _ = processes.on_first(lambda: checkpoints.load_variables(out))
    variables = parallel.replicate(variables)
    rows = predictor.detect_source(finder, variables, test, batch_size=batch_size)
    coco.write_results(out / "detections.json", rows)
    sheet = predictor.contact_sheet(test, rows, n_pictures=n_pictures, columns=columns)
    draw.save_png(out / "pictures" / "test.png", sheet)
    return Tested(variables, test, rows)
