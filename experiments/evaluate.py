"""COCO numbers of a checkpoint on annotated pictures, or of a results file that any tool wrote.

Expected  fasterrcnn_resnet50_fpn on val2017, as published: AP 0.370 (not run here: no network).
Run       python experiments/evaluate.py --data PATH --checkpoint runs/x
          python experiments/evaluate.py --data PATH --results detections.json
          python experiments/evaluate.py --data COCO --split val --weights fasterrcnn_resnet50_fpn
Writes    OUT/detections.json, OUT/results.json (with classifiers and localizers their own measures,
          too, of five guesses), OUT/precision_recall.png, OUT/pictures.png
"""

import dataclasses
import json
import pathlib
from typing import Any

import tqdm

from jaxdet import predictor
from jaxdet.data import layouts, selection, shapes, sources
from jaxdet.data.resize import ShortSide
from jaxdet.data.selection import Selection
from jaxdet.metrics import coco
from jaxdet.training import checkpoints, logging, recipes
from jaxdet.viz import draw, figures
from jaxdet.weights import detectors, download
from jaxdet.weights.description import name_of

GUESSERS = ("classifier", "localizer")  # Of one object or a few, not of all there are.


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate, and on what."""

    data: str
    """`shapes`, or a path: COCO, VOC, YOLO, VIA, CSV, masks, pictures by class, a TFDS folder; or
    tfds:NAME."""
    format: layouts.Format | None = None
    """Of the data, if what is found by itself is wrong."""
    skip_bad: bool = False
    """Leave out pictures with faults in them or their annotations, in place of stopping."""
    checkpoint: pathlib.Path | None = None
    """A run (its best checkpoint), or a checkpoint's own folder."""
    weights: str = ""
    """A published name, or a file (.pth, .safetensors), in place of a checkpoint."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where the weights do not know them."""
    min_size: int | None = None
    """Shorter side that pictures are given, pixels; the checkpoint's, or torchvision's, if None."""
    max_size: int = 1333
    """With `min_size`: the longer side's limit, pixels."""
    norm_epsilon: float | None = None
    """Of batch norms; if None, 0 for the published fasterrcnn_resnet50_fpn, as torchvision has it,
    1e-5 for others."""
    results: pathlib.Path | None = None
    """A COCO results file, in place of a checkpoint."""
    split: str = "test"
    """Part of the data: train, val or test."""
    images: pathlib.Path | None = None
    """Folder of the pictures of a JSON or CSV file that lie far from it."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where generated and TFDS's data sets are kept."""
    as_trained: bool = True
    """Whether scenes, n_objects and crops are the checkpoint's where they are not given here."""
    scenes: shapes.Drawing | None = None
    """Which drawing of `shapes`; full if nothing else is known."""
    n_objects: int | None = None
    """Only pictures with this many objects, all of which count."""
    crops: float | None = None
    """Objects cut out, with this share of their sides around them, in place of pictures."""
    out: pathlib.Path = pathlib.Path("evaluation")
    """Where to write."""
    batch_size: int = 8
    """Pictures at once."""
    n_pictures: int = 16
    """Pictures drawn, ground truth beside predictions."""


def main(config: Config) -> coco.Evaluation:
    """Evaluates, writes; returns the numbers."""
    given = [config.checkpoint is not None, config.results is not None, bool(config.weights)]
    if sum(given) != 1:
        raise ValueError("Give either --checkpoint, --weights or --results.")
    detector = None
    if config.results is None:
        detector = detectors.load(
            config.checkpoint or config.weights,
            norm_epsilon=config.norm_epsilon,
            canvases=ShortSide(config.min_size, config.max_size) if config.min_size else None,
            classes=config.classes or None,
            progress=download.show_progress,
        )
    source = selection.open_split(as_trained(config), config.split)
    print(sources.describe(source), flush=True)

    measured: dict[str, float] = {}
    if detector is not None:
        finder, variables = predictor.from_detector(detector)
        with tqdm.tqdm(total=len(source), desc="detecting", unit="picture") as bar:
            rows = predictor.detect_source(
                finder,
                variables,
                source,
                batch_size=config.batch_size,
                progress=lambda done: bar.update(done - bar.n),
            )
        system = name_of(detector.description.architecture)
        if system in GUESSERS:
            judge = predictor.judge_of(detector.description, finder)
            measured = predictor.measure_source(
                judge, variables, source, batch_size=config.batch_size
            )
        if system == "classifier":  # Its boxes are whole pictures.
            measured = {name: measured[name] for name in ("top1", "top5")}
    else:
        rows = coco.read_results(config.results)
    evaluation = coco.evaluate_boxes(sources.to_coco(source), rows)

    config.out.mkdir(parents=True, exist_ok=True)
    coco.write_results(config.out / "detections.json", rows)
    guesses = {"guesses": measured} if measured else {}
    text = json.dumps(coco.as_json(evaluation) | guesses, indent=2) + "\n"
    logging.write_atomically(config.out / "results.json", text)
    figures.precision_recall_figure(
        config.out / "precision_recall.png", evaluation.precision50, list(evaluation.per_class)
    )
    sheet = predictor.contact_sheet(source, rows, n_pictures=config.n_pictures)
    draw.save_png(config.out / "pictures.png", sheet)
    print(coco.as_table(evaluation))
    for name, value in measured.items():
        print(f"{name:18} {value:.3f}")
    return evaluation


def as_trained(config: Config) -> Selection:
    """The data to open: pictures of the kind that the checkpoint was trained on."""
    trained: dict[str, Any] = {}
    if config.as_trained and config.checkpoint is not None:
        metadata = checkpoints.read_metadata(config.checkpoint)
        trained = metadata.get("config", {}).get("selection", {})
    kind = {
        name: trained.get(name) if given is None else given
        for name, given in (
            ("scenes", config.scenes),
            ("n_objects", config.n_objects),
            ("crops", config.crops),
        )
        if config.data == "shapes" or name != "scenes"
    }
    kind = {name: value for name, value in kind.items() if value is not None}
    if kind:
        print("Pictures:", ", ".join(f"{name} {value}" for name, value in kind.items()))
    return Selection(
        data=config.data,
        format=config.format,
        skip_bad=config.skip_bad,
        images=config.images,
        data_dir=config.data_dir,
        **kind,
    )


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
