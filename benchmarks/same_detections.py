"""Do torchvision's detectors find the same here? The same weights and pictures, each at full size.

Needs     pip install torch torchvision
Run       python benchmarks/same_detections.py FOLDER
          python benchmarks/same_detections.py FOLDER --models NAME --weights FILE
Columns   detections: of torchvision; paired: those with one of the same label here, the box within
          0.05 px and the score within 1e-4; px, score: largest difference in a pair

Pictures are resized, normalized and padded by each library itself. Without --weights they are
seeded by name (tests/golden/detector_weights.py), so that detections are many, spread over boxes
and classes. Detections without partner are printed with the nearest of their label: one at the
threshold of the score or of suppression, or at the end of the list, may fall on either side.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from torchvision.models import detection

from jaxdet import predictor
from jaxdet.data.records import Source
from jaxdet.training import recipes
from jaxdet.weights import detectors, published

BOX, SCORE = 0.05, 1e-4
MODELS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare."""

    pictures: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Picture files, or folders of them."""
    models: tuple[str, ...] = MODELS
    """Names of torchvision's."""
    weights: pathlib.Path | None = None
    """A file of the model's weights (.pth, 91 classes), for one model; seeded ones if None."""
    limit: int = 20
    """Pictures, spread evenly over those that are there; each size is compiled for."""


class Result(NamedTuple):
    """How the detections of a model compare."""

    detections: int  # Of torchvision.
    paired: int
    box: float  # Largest difference in a pair, pixels.
    score: float


def main(config: Config) -> dict[str, Result]:
    """Compares, prints; returns the numbers by model."""
    if config.weights is not None and len(config.models) != 1:
        raise ValueError(f"--weights are of one model. Name it with --models. Got {config.models}")
    source = predictor.spread(predictor.picture_source(config.pictures), config.limit)
    sizes = {a.size for a in source.annotations}
    print(f"{len(source)} pictures of {len(sizes)} sizes; torch {torch.__version__}\n")
    lines, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in config.models:
            model = detection.__dict__[name](weights=None, weights_backbone=None).eval()
            file = config.weights or pathlib.Path(folder) / f"{name}.pth"
            if config.weights is None:
                torch.save(seeded(model), file)
            results[name] = compare(name, model, file, source)
            r = results[name]
            share = 100 * r.paired / max(r.detections, 1)
            lines.append(
                f"{name:36}{r.detections:11}{r.paired:8}{share:8.2f} %{r.box:10.1e}{r.score:10.1e}"
            )
    print(f"\n{'':36}{'detections':>11}{'paired':>8}{'':10}{'px':>10}{'score':>10}")
    print("\n".join(lines))
    return results


def seeded(model: Any) -> dict[str, torch.Tensor]:
    """Weights by name, with norms that are not the identity."""
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests" / "golden"))
    import detector_weights

    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    drawn = detector_weights.state_dict(shapes)
    return {key: torch.from_numpy(value) for key, value in drawn.items()}


def compare(name: str, model: Any, file: pathlib.Path, source: Source) -> Result:
    """Both libraries' detections in all pictures, paired."""
    model.load_state_dict(torch.load(file, weights_only=True))
    if (
        name == "fasterrcnn_resnet50_fpn"
        and file.name == published.FILES[published.full_name(name)]
    ):
        for module in model.modules():  # As torchvision does for this file.
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
    finder, variables = predictor.from_detector(detectors.load(file))
    rows = predictor.detect_source(finder, variables, source, batch_size=1)
    ours = predictor.group_by_picture(rows)
    counts, differences = np.zeros(2, int), np.zeros((1, 2))
    for index, annotation in enumerate(source.annotations):
        pixels = torch.from_numpy(source.read(index)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            theirs = {key: value.numpy() for key, value in model([pixels])[0].items()}
        category = [finder.category_ids[label - 1] for label in theirs["labels"]]
        near = pair(theirs, category, ours.get(annotation.image_id, []), annotation.name)
        counts += len(category), len(near)
        differences = np.concatenate([differences, near])
        print(f"{name} {annotation.name}: {len(near)} of {len(category)}", flush=True)
    return Result(*counts.tolist(), *differences.max(axis=0).tolist())


def pair(
    theirs: Mapping[str, np.ndarray],
    categories: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    where: str,
) -> np.ndarray:
    """Differences (box, score) of pairs, best first; tells of detections that have no partner."""
    xywh = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    scores = np.array([row["score"] for row in rows])
    labels = np.array([row["category_id"] for row in rows])
    free, pairs = np.ones(len(rows), bool), []
    for box, score, label in zip(theirs["boxes"], theirs["scores"], categories, strict=True):
        apart = np.abs(boxes - box).max(axis=1, initial=0)
        off = np.abs(scores - score)
        fits = np.flatnonzero(free & (labels == label) & (apart < BOX) & (off < SCORE))
        if len(fits):
            best = fits[np.argmin(apart[fits])]
            free[best] = False
            pairs.append((apart[best], off[best]))
            continue
        same = np.flatnonzero(labels == label)
        nearest = same[np.argmin(apart[same])] if len(same) else None
        told = (
            "none of its label"
            if nearest is None
            else (f"the nearest is {apart[nearest]:.3g} px off, its score {scores[nearest]:.6f}")
        )
        print(f"  {where}: label {label}, score {score:.6f}, {box.round(1)}: {told}")
    return np.array(pairs).reshape(-1, 2)


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
