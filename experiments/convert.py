"""Weights from one form into another: torchvision's files, safetensors, our checkpoints.

Run       python experiments/convert.py fasterrcnn_resnet50_fpn detector.safetensors
          python experiments/convert.py model.pth runs/imported
          python experiments/convert.py runs/mine mine.pth
Writes    TARGET: a file if it ends in .pth, .pt or .safetensors, else a folder with a checkpoint.
          torchvision's `model.load_state_dict` takes what `torch.load("mine.pth")` gives, of a
          Faster R-CNN or a classifier; it has no other of our systems, for which a .safetensors
          file or a folder is written. Classifiers are read from our runs and .safetensors alone.
"""

import dataclasses
import pathlib
from typing import Any

import tyro

from jaxdet.data.resize import ShortSide
from jaxdet.training import recipes
from jaxdet.weights import detectors, download, files
from jaxdet.weights.description import name_of
from jaxdet.weights.tensor_pickle import WeightsError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to read, where to write."""

    source: tyro.conf.Positional[str]
    """A published name, a file (.pth, .pt, .safetensors), or a run or checkpoint of ours."""
    target: tyro.conf.Positional[pathlib.Path]
    """A file (.pth, .pt, .safetensors), or a new folder."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in place of those the source knows, if any."""
    min_size: int | None = None
    """Shorter side that pictures are to be given, pixels; the source's, or torchvision's, if
    None."""
    max_size: int = 1333
    """With `min_size`: the longer side's limit, pixels."""
    norm_epsilon: float | None = None
    """Of batch norms; if None, 0 for the published fasterrcnn_resnet50_fpn, as torchvision has it,
    1e-5 for others."""


def main(config: Config) -> detectors.Detector:
    """Reads, writes; returns what was converted."""
    suffix = config.target.suffix
    if suffix[1:2].isalpha() and suffix not in files.SUFFIXES:
        known = ", ".join(files.SUFFIXES)
        raise ValueError(
            f"{config.target}: files end in {known}. Name one of these, or a folder that does not "
            f"end in {suffix}."
        )
    source = pathlib.Path(config.source)
    if source.exists() and config.target.exists() and config.target.samefile(source):
        raise ValueError(f"{config.target}: is the source, too. Name another file.")
    detector = detectors.load(
        config.source,
        norm_epsilon=config.norm_epsilon,
        canvases=ShortSide(config.min_size, config.max_size) if config.min_size else None,
        classes=config.classes or None,
        progress=download.show_progress,
    )
    save = detectors.save if suffix in files.SUFFIXES else detectors.save_checkpoint
    save(config.target, detector)
    print(f"{config.source} -> {config.target}: {len(detector.description.classes)} classes")
    print(summary(detector.description.architecture))
    if suffix in files.TORCH and name_of(detector.description.architecture) == "faster_rcnn":
        try:
            detectors.load(str(config.target), norm_epsilon=config.norm_epsilon)
        except WeightsError:
            print(
                f"Note: torchvision builds no network of these sizes, and {suffix} files do not "
                f"say what they are of: here only {files.SAFE} or a folder can be read again."
            )
    return detector


def summary(architecture: Any) -> str:
    """The system, and what is not as it would be by default."""

    def changed(record: Any) -> str:
        texts = []
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if value != field.default:
                text = f"({changed(value)})" if dataclasses.is_dataclass(value) else str(value)
                texts.append(f"{field.name} {text}")
        return ", ".join(texts) or "all as by default"

    return f"{name_of(architecture)}: {changed(architecture)}"


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
