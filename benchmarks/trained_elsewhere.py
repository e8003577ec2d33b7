"""Is what torchvision trained worth as much here? One file and the same pictures, both scored.

Needs     pip install torch torchvision pycocotools
Run       python benchmarks/trained_elsewhere.py ANNOTATIONS.json
          python benchmarks/trained_elsewhere.py ANNOTATIONS.json --steps 400 --out runs/elsewhere
Writes    OUT/model.pth; OUT/torchvision.json and OUT/jaxdet.json, COCO results files
Columns   pycocotools' twelve numbers, of either library's detections in the pictures trained on

torchvision trains its own Faster R-CNN (ResNet-18, pyramid) by SGD, from random weights; both read
what it saved, and resize, normalize, pad and detect by themselves. Ends with an error where a
number differs by more than a thousandth, or where so little was learnt that this would say nothing.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from typing import Annotated, Any

import numpy as np
import torch
import tqdm
import tyro
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models import detection
from torchvision.models.detection import backbone_utils

from jaxdet import predictor
from jaxdet.data import coco_json, sources
from jaxdet.data.records import Source
from jaxdet.data.resize import ShortSide
from jaxdet.training import recipes
from jaxdet.weights import detectors

NAMES = (
    *("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"),
    *("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge"),
)
LEAST, FAR = 0.2, 1e-3  # AP that says something; a difference that is one.

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and on what."""

    annotations: Annotated[pathlib.Path, tyro.conf.Positional]
    """COCO JSON of boxes."""
    images: pathlib.Path | None = None
    """Folder of its pictures, if they lie far from it."""
    out: pathlib.Path = pathlib.Path("runs/trained_elsewhere")
    """Where to write."""
    steps: int = 200
    """Updates; none where OUT/model.pth is there already."""
    batch_size: int = 4
    learning_rate: float = 0.02
    min_size: int = 400
    """Shorter side that pictures are given, pixels."""
    max_size: int = 600
    """The longer side's limit, pixels."""
    seed: int = 0


def main(config: Config) -> None:
    """Trains, detects twice, prints."""
    source = coco_json.read_coco(config.annotations, images=config.images)
    print(f"{sources.describe(source)}\ntorch {torch.__version__}", flush=True)
    torch.manual_seed(config.seed)
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=torch.nn.BatchNorm2d,
        trainable_layers=5,
    )
    model = detection.FasterRCNN(
        backbone, len(source.classes) + 1, min_size=config.min_size, max_size=config.max_size
    )
    file = config.out / "model.pth"
    if not file.is_file():
        train(model, source, config)
        config.out.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file, weights_only=True))
    detector = detectors.load(
        file, canvases=ShortSide(config.min_size, config.max_size), classes=source.classes
    )
    finder, variables = predictor.from_detector(detector)
    found = {
        "torchvision": detect_theirs(model.eval(), source),
        "jaxdet": predictor.detect_source(finder, variables, source, batch_size=1),
    }
    numbers = {}
    for name, rows in found.items():
        (config.out / f"{name}.json").write_text(json.dumps(rows))
        numbers[name] = score(config.annotations, config.out / f"{name}.json")
    print("".join(f"{name:>12}" for name in ("", *NAMES, "detections")))
    for name, values in numbers.items():
        print(f"{name:12}" + "".join(f"{x:12.5f}" for x in values) + f"{len(found[name]):12}")
    ap, far = numbers["torchvision"][0], np.abs(numbers["torchvision"] - numbers["jaxdet"]).max()
    if ap < LEAST or far > FAR:
        raise SystemExit(f"AP {ap:.3f} (at least {LEAST}), difference {far:.2g} (at most {FAR}).")


def train(model: Any, source: Source, config: Config) -> None:
    """Updates of torchvision's own, on pictures in random order."""
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=1e-4
    )
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=config.steps // 10)
    n_epochs = -(-config.steps * config.batch_size // len(source))
    order = np.concatenate([rng.permutation(len(source)) for _ in range(n_epochs)])
    model.train()
    with tqdm.trange(config.steps, desc="torchvision trains", unit="step") as bar:
        for step in bar:
            start = step * config.batch_size
            pictures, targets = [], []
            for index in order[start : start + config.batch_size]:
                truth = source.annotations[index]
                pictures.append(as_tensor(source.read(int(index))))
                targets.append(
                    {
                        "boxes": torch.from_numpy(truth.boxes[truth.objects]),
                        "labels": torch.from_numpy(truth.labels[truth.objects]).long(),
                    }
                )
            optimizer.zero_grad()
            loss = sum(model(pictures, targets).values())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            warm.step()
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """A picture as torchvision takes it."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def detect_theirs(model: Any, source: Source) -> Rows:
    """Rows of a results file, of all pictures."""
    rows: Rows = []
    for index, truth in enumerate(tqdm.tqdm(source.annotations, desc="torchvision detects")):
        with torch.inference_mode():
            found = {k: v.numpy() for k, v in model([as_tensor(source.read(index))])[0].items()}
        rows += [
            {
                "image_id": truth.image_id,
                "category_id": source.category_ids[label - 1],
                "bbox": [*box[:2], *(box[2:] - box[:2])],
                "score": likely,
            }
            for box, label, likely in zip(
                found["boxes"].astype(float),
                found["labels"].tolist(),
                found["scores"].tolist(),
                strict=True,
            )
        ]
    return rows


def score(annotations: pathlib.Path, results: pathlib.Path) -> np.ndarray:
    """What pycocotools says of a results file."""
    with contextlib.redirect_stdout(None):  # It prints each step.
        truth = COCO(str(annotations))
        judge = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return np.array(judge.stats)


if __name__ == "__main__":
    begun = time.perf_counter()
    recipes.run_script(main, Config, description=__doc__ or "")
    print(f"{(time.perf_counter() - begun) / 60:.1f} min")
