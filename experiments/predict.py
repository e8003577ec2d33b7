"""Finds objects in pictures with a trained detector: drawn PNGs and a COCO results file.

Run       python experiments/predict.py --checkpoint runs/shapes a.jpg folder/
          python experiments/predict.py --weights fasterrcnn_resnet50_fpn a.jpg
          python experiments/predict.py --weights FILE.pth a.jpg
Writes    OUT/*.png, one a picture, boxes with class names and scores;
          OUT/detections.json, a COCO results file, and OUT/pictures.json, its images and categories
"""

import dataclasses
import json
import pathlib
import sys

import tqdm
import tyro

from jaxdet import predictor
from jaxdet.data import sources
from jaxdet.data.reports import Report
from jaxdet.metrics import coco
from jaxdet.training import recipes
from jaxdet.viz import draw
from jaxdet.weights import detectors, download


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at, and with what."""

    pictures: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Picture files, or folders of them (with their sub folders)."""
    checkpoint: pathlib.Path | None = None
    """A run (its best checkpoint), or a checkpoint's own folder."""
    weights: str = ""
    """A published name, or a file (.pth, .safetensors), in place of a checkpoint."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where the weights do not know them."""
    norm_epsilon: float | None = None
    """Of batch norms; if None, 0 for the published fasterrcnn_resnet50_fpn, as torchvision has it,
    1e-5 for others."""
    out: pathlib.Path = pathlib.Path("predictions")
    """Where to write."""
    score_threshold: float = 0.5
    """Less likely detections are not drawn, 0 to 1."""
    batch_size: int = 8
    """Pictures at once."""


def main(config: Config) -> list[dict]:
    """Detects, draws, writes; returns the rows of the results file."""
    if (config.checkpoint is None) != bool(config.weights):
        raise ValueError("Give either --checkpoint or --weights.")
    if not config.pictures:
        raise ValueError("Name a picture or a folder of pictures.")
    if not 0 <= config.score_threshold <= 1:
        raise ValueError(f"--score-threshold must be within 0 to 1. Got {config.score_threshold}.")
    detector = detectors.load(
        config.checkpoint or config.weights,
        norm_epsilon=config.norm_epsilon,
        classes=config.classes or None,
        progress=download.show_progress,
    )
    finder, variables = predictor.from_detector(detector)
    report = Report()
    source = predictor.picture_source(config.pictures, report=report)
    for text in report.faults:
        print(f"Left out: {text}", file=sys.stderr)
    if not len(source):
        raise ValueError("No picture can be read.")
    with tqdm.tqdm(total=len(source), desc="detecting", unit="picture") as bar:
        rows = predictor.detect_source(
            finder,
            variables,
            source,
            batch_size=config.batch_size,
            progress=lambda done: bar.update(done - bar.n),
        )
    config.out.mkdir(parents=True, exist_ok=True)
    coco.write_results(config.out / "detections.json", rows)
    truth = sources.to_coco(source) | {
        "categories": [
            {"id": key, "name": name}
            for key, name in zip(finder.category_ids, finder.classes, strict=True)
        ]
    }
    (config.out / "pictures.json").write_text(json.dumps(truth, indent=1) + "\n")

    by_picture = predictor.group_by_picture(rows)
    for index, annotation in enumerate(source.annotations):
        image, _ = source[index]
        found = by_picture.get(annotation.image_id, [])
        drawn = predictor.draw_results(
            image,
            found,
            classes=finder.classes,
            category_ids=finder.category_ids,
            score_threshold=config.score_threshold,
        )
        path = config.out / f"{index + 1:05d}_{pathlib.Path(annotation.name).stem}.png"
        draw.save_png(path, drawn)
        shown = [row for row in found if row["score"] >= config.score_threshold]
        names = [finder.classes[finder.category_ids.index(r["category_id"])] for r in shown]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        best = max(found, key=lambda row: row["score"], default=None)
        if best is not None and not counts:
            name = finder.classes[finder.category_ids.index(best["category_id"])]
            counts = f"nothing as sure as {config.score_threshold:g}; likeliest, at "
            counts += f"{best['score']:.2f}: {name}"
        print(f"{annotation.name} -> {path}: {counts or 'nothing found'}")
    return rows


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
