"""Batches for the steps of a run: of each process its share, read as the flags say.

And the way back: to the pictures that a batch shows, and from the shares to the whole.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int32

from jaxdet.data import pipeline
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.resize import ShortSide
from jaxdet.data.selection import Selection
from jaxdet.data.transforms import Size
from jaxdet.structures import Batch
from jaxdet.training import fit, processes


def training(
    source: Source,
    *,
    selection: Selection,
    options: fit.Options,
    canvases: Sequence[Size],
    augmentation: Augmentation,
    rates: Float64[np.ndarray, " n"] | None,
    max_objects: int | None = None,
    with_keypoints: bool = False,
) -> fit.Feed:
    """Returns what `fit.fit` trains on.

    Args:
      source: Annotated pictures.
      selection: How they are read.
      options: Of the run: size and seed of the batches.
      canvases: As in `pipeline.train_pipeline`, and all that follow.
      augmentation: How pictures are varied.
      rates: How often each picture comes in an epoch; each once if None.
      max_objects: Rows for objects; as many as are needed if None.
      with_keypoints: Whether batches have the objects' keypoints.
    """
    batches = pipeline.train_pipeline(
        source,
        canvases=canvases,
        batch_size=options.batch_size,
        seed=options.seed,
        augmentation=augmentation,
        rates=rates,
        max_objects=max_objects,
        with_keypoints=with_keypoints,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache_bytes=selection.cache_mb << 20,
    )
    begin_with = functools.partial(
        pipeline.iterate, batches, threads=selection.threads, workers=selection.workers
    )
    return fit.Feed(begin_with, source.names)


def evaluation(
    source: Source,
    *,
    canvases: Sequence[Size] | ShortSide,
    batch_size: int,
    max_objects: int | None = None,
    with_keypoints: bool = False,
) -> Callable[[], Iterator[Batch]]:
    """Returns a function that gives all batches anew: every picture once, over all processes.

    Args:
      source: Pictures.
      canvases: As in `pipeline.eval_pipeline`.
      batch_size: Pictures at once, over all processes; their number must divide it.
      max_objects: Rows for objects; as many as are needed if None.
      with_keypoints: Whether batches have the objects' keypoints.
    """
    batches = pipeline.eval_pipeline(
        source,
        canvases=canvases,
        batch_size=batch_size,
        max_objects=max_objects,
        with_keypoints=with_keypoints,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return functools.partial(pipeline.iterate, batches)


class Pictures(NamedTuple):
    """Which pictures of a source a batch shows; what only fills it has no id and size 0."""

    image_ids: list[int | None]
    sizes: Int32[np.ndarray, "b 2"]  # (height, width), pixels.
    scales: Float32[np.ndarray, "b 2"]  # From x and y on the canvas to x and y in the picture.


def pictures_of(batch: Batch, source: Source) -> Pictures:
    """Returns the pictures of a batch.

    Args:
      batch: Of `evaluation`.
      source: What it was read from.
    """
    annotations = [source.annotations[i] if i >= 0 else None for i in batch.records]
    sizes = np.array([a.size if a else (0, 0) for a in annotations], np.int32)
    scales = sizes / np.maximum(batch.images.sizes, 1)
    image_ids = [a.image_id if a else None for a in annotations]
    return Pictures(image_ids, sizes, scales[:, ::-1].astype(np.float32))


def gathered(
    rows: Sequence[Mapping[str, Any]], source: Source, *, canvases: Sequence[Size] | ShortSide
) -> list[dict[str, Any]]:
    """Returns the rows of all processes, in the order in which one process finds them by itself.

    Args:
      rows: Of a COCO results file, of this process's share of the pictures.
      source: The pictures.
      canvases: As in `evaluation`.
    """
    order = itertools.chain(*pipeline.group_by_canvas(source, canvases).values())
    place = {source.annotations[index].image_id: i for i, index in enumerate(order)}
    found = itertools.chain(*processes.gather([dict(row) for row in rows]))
    return sorted(found, key=lambda row: place[row["image_id"]])
