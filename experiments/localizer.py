"""Classification and localization: what is the one object in a picture, and where?

Source    OverFeat: Sermanet et al. 2014 (arXiv:1312.6229v4), section 4; VGG: Simonyan & Zisserman
          2015 (arXiv:1409.1556v6), appendix A; R-CNN's codes of boxes: arXiv:1311.2524v5.
Expected  TODO
Run       python experiments/localizer.py
          python experiments/localizer.py staged
          python experiments/localizer.py folder --data PATH --weights resnet18
Check     python experiments/localizer.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/, pictures/,
          progress/ (guesses about a few held-out pictures at each evaluation) and progress.png,
          detections.json (a COCO results file), curves.png, results.json; classifier/ (the same of
          the first stage, where there is one)
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxdet import predictor
from jaxdet.data import pipeline, selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.selection import Selection
from jaxdet.features.networks import Network
from jaxdet.metrics import coco
from jaxdet.systems import localizer
from jaxdet.systems.classifier import DetectOptions
from jaxdet.systems.localizer import Architecture, LossOptions
from jaxdet.training import checkpoints, fit, logging, parallel, recipes, state
from jaxdet.viz import draw, figures
from jaxdet.weights import classifiers, download
from jaxdet.weights.description import Description, to_metadata


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection(scenes="single")
    canvases: tuple[tuple[int, int], ...] = ((128, 128),)
    """(height, width) of the arrays that pictures are resized onto."""
    augmentation: Augmentation = Augmentation()
    architecture: Architecture = Architecture()
    loss: LossOptions = LossOptions()
    detect: DetectOptions = DetectOptions()
    staged: bool = False
    """Whether the classifier is trained first (or read), and then the box head alone."""
    weights: str = ""
    """A classifier to begin from: a run, a published name, or a file (.pth, .safetensors)."""
    training: OmitArgPrefixes[fit.Options] = fit.Options()
    classifier: fit.Options = fit.Options()
    """Of the first stage, where there is one."""
    n_pictures: int = 8
    """Pictures drawn at each evaluation."""
    out: pathlib.Path = pathlib.Path("runs/localizer")
    """Folder of the run; one with checkpoints is gone on with."""
