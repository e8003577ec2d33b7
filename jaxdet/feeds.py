"""Batches for the steps of a run: of each process its share, read as the flags say."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float64

from jaxdet.data import pipeline
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.resize import ShortSide
from jaxdet.data.selection import Selection
from jaxdet.data.transforms import Size
from jaxdet.structures import Batch
from jaxdet.training import fit


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
) -> Callable[[int], Iterator[Batch]]:
    """Returns, from the number of a batch, an iterator that begins with that batch; for `fit.fit`.

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
    return functools.partial(
        pipeline.iterate, batches, threads=selection.threads, workers=selection.workers
    )


def evaluation(
    source: Source,
    *,
    canvases: Sequence[Size] | ShortSide,
    batch_size: int,
    max_objects: int | None = None,
) -> Callable[[], Iterator[Batch]]:
    """Returns a function that gives all batches anew: every picture once, over all processes.

    Args:
      source: Pictures.
      canvases: As in `pipeline.eval_pipeline`.
      batch_size: Pictures at once, over all processes; their number must divide it.
      max_objects: Rows for objects; as many as are needed if None.
    """
    batches = pipeline.eval_pipeline(
        source,
        canvases=canvases,
        batch_size=batch_size,
        max_objects=max_objects,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return functools.partial(pipeline.iterate, batches)
