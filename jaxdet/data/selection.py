"""Which data a training script reads, and how: the flags that all of them have."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxdet.data import epochs, layouts, object_pictures, shapes, sources
from jaxdet.data.records import Source


@dataclasses.dataclass(frozen=True)
class Selection:
    """Data sets and their parts; each field is also a flag."""

    data: str = "shapes"
    """`shapes`, or a path: COCO, VOC, YOLO, VIA, CSV, masks, pictures by class, a TFDS folder; or
    tfds:NAME."""
    format: layouts.Format | None = None
    """Of the data, if what is found by itself is wrong."""
    skip_bad: bool = False
    """Leave out pictures with faults in them or their annotations, in place of stopping."""
    images: pathlib.Path | None = None
    """Folder of the pictures of a JSON or CSV file that lie far from it."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where generated and TFDS's data sets are kept."""
    scenes: shapes.Drawing = "full"
    """Which drawing of `shapes`."""
    train_split: str = "train"
    """Part of the data that is trained on."""
    val_split: str = "val"
    """Part that is evaluated during training and that picks the best checkpoint."""
    test_split: str = "test"
    """Part that the final numbers are from; folders without one give `val` again."""
    sampling: Literal["each", "repeat_factor", "class_balanced"] = "each"
    """Each picture once an epoch, those of rare classes more often, or classes equally often."""
    repeat_threshold: float = 1e-3
    """Share of the pictures below which a class is rare, for `repeat_factor`."""
    more_data: tuple[str, ...] = ()
    """Further data to train on, of the same classes; each is named as `data` is."""
    data_weights: tuple[float, ...] = ()
    """Shares of `data` and of each of `more_data` in an epoch; by their sizes if none are given."""
    n_objects: int | None = None
    """Only pictures with this many objects, all of which count."""
    crops: float | None = None
    """Objects cut out, with this share of their sides around them, in place of pictures."""
    threads: int = 1
    """Of the input pipeline, in each of its processes."""
    workers: int = 0
    """Processes of the input pipeline; 0 is the training process itself."""
    cache_mb: int = 512
    """Memory for decoded pictures, in each process."""


# What does not change what a run computes, by the name of the field.
FREE = ("data_dir", "threads", "workers", "cache_mb")


def open_split(selection: Selection, split: str, *, classes: Sequence[str] | None = None) -> Source:
    """Opens a part of the data, looking at every picture.

    Args:
      selection: What to open.
      split: Its part.
      classes: Those of the training data; the data's own if None.

    Raises:
      DataError: Names every fault (the first ten of them), unless bad pictures are skipped.
    """
    source = sources.open_data(
        selection.data,
        split=split,
        data_dir=selection.data_dir,
        scenes=selection.scenes,
        images=selection.images,
        format=selection.format,
        skip_bad=selection.skip_bad,
        classes=classes,
    )
    if selection.n_objects is not None:
        source = object_pictures.with_count(source, selection.n_objects)
    if selection.crops is not None:
        source = object_pictures.crops(source, context=selection.crops)
    return source


def open_training(selection: Selection) -> tuple[Source, Float64[np.ndarray, " n"] | None]:
    """Opens all that is trained on.

    Args:
      selection: What to open.

    Returns:
      One source, and how often each picture comes in an epoch; None where each comes once.

    Raises:
      DataError: As `open_split`.
      ValueError: Where there are weights for data that is not named.
    """
    train = open_split(selection, selection.train_split)
    rates = np.ones(len(train))
    if selection.data_weights and not selection.more_data:
        raise ValueError(f"data_weights needs more_data. Got {selection.data_weights} alone")
    if selection.more_data:
        named = [
            dataclasses.replace(selection, data=name, images=None) for name in selection.more_data
        ]
        others = [open_split(s, s.train_split, classes=train.classes) for s in named]
        weights = selection.data_weights or [float(len(part)) for part in (train, *others)]
        train, rates = epochs.mix([train, *others], weights)
    if selection.sampling == "repeat_factor":
        rates = rates * epochs.repeat_factors(train, threshold=selection.repeat_threshold)
    if selection.sampling == "class_balanced":
        rates = rates * epochs.class_balanced_rates(train)
    return train, None if (rates == 1).all() else rates


class Parts(NamedTuple):
    """What a run is trained on, and what it is held against meanwhile."""

    train: Source
    rates: Float64[np.ndarray, " n"] | None  # How often each picture comes; None: each once.
    val: Source


def open_parts(selection: Selection) -> Parts:
    """Opens all that a run reads before its end.

    Args:
      selection: What to open.

    Raises:
      DataError: As `open_split`.
      ValueError: As `open_training`.
    """
    train, rates = open_training(selection)
    return Parts(train, rates, open_split(selection, selection.val_split, classes=train.classes))
