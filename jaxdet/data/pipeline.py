"""Batches as a pure function of their number: `train_pipeline(...)[i]` is batch i, whoever asks.

A batch depends on the seed and its number only: not on threads or worker processes, on the batches
read before, or, with several hosts, on how the images of the global batch are dealt out among them.
"""

import dataclasses
import functools
import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Float64

from jaxdet.data import examples, transforms
from jaxdet.data.augment import Augmentation
from jaxdet.data.compose import MOSAIC
from jaxdet.data.epochs import RatedIndices
from jaxdet.data.examples import CachedSource, Rows
from jaxdet.data.records import DataError, Source
from jaxdet.data.resize import ShortSide
from jaxdet.data.transforms import Size
from jaxdet.structures import Batch

# Grain's threads are the parallelism; OpenCV's own pool would fight XLA's for the same cores.
cv2.setNumThreads(0)

CACHE_BYTES = 1 << 29
PATIENCE = 1.0  # Seconds that workers have for the batches they are at when nobody wants them.


def train_pipeline(
    source: Source,
    *,
    canvases: Sequence[Size],
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    rates: Float64[np.ndarray, " n"] | None = None,
    max_objects: int | None = None,
    mask_side: int | None = None,
    with_keypoints: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    cache_bytes: int = CACHE_BYTES,
) -> grain.MapDataset:
    """Endless training batches, each epoch in a new order, each image varied anew.

    Args:
      source: Annotated pictures.
      canvases: (height, width) of each canvas; an image goes to the one that it fills best.
      batch_size: Images of the global batch, over all processes.
      seed: Decides order and augmentation, 0 to 2**32 - 1.
      augmentation: How pictures are varied.
      rates: How often each picture comes in an epoch, from `epochs`; each once if None.
      max_objects: Rows for objects; `max_object_count` if None. See `count_cut`.
      mask_side: Cells of a side of the objects' masks; no masks if None.
      with_keypoints: Whether batches have the objects' keypoints.
      process_index: Which slice of the global batch to read.
      process_count: How many slices there are.
      cache_bytes: Decoded pictures are kept in memory up to this size, in each worker process.

    Returns:
      A data set of `Batch`, random access: one canvas a batch, canvases in turn by their share of
      the images.
    """
    _check_batch(source, batch_size, process_index, process_count)
    if augmentation.copy_paste and not any(a.segments for a in source.annotations):
        raise ValueError(
            "copy_paste (--augmentation.copy-paste) cuts objects out by their masks: "
            f"{source.name} has none. Leave it at 0."
        )
    if max_objects is None:
        max_objects = max_object_count(source, augmentation=augmentation)
    rows = _rows(source, max_objects, mask_side, with_keypoints=with_keypoints)
    needs_segments = mask_side is not None or augmentation.copy_paste or augmentation.rotation
    source = _without(source, segments=not needs_segments, keypoints=not with_keypoints)
    pictures = CachedSource(source, cache_bytes)
    orders = _orders(source, canvases, rates)
    positions = tuple(range(process_index, batch_size, process_count))
    datasets = []
    for number, (canvas, order) in enumerate(orders.items()):
        vary = functools.partial(
            examples.varied_example,
            source=pictures,
            canvas=canvas,
            augmentation=augmentation,
            rows=rows,
        )
        datasets.append(
            order.seed((seed + 7919 * number) % 2**32)
            .shuffle()
            .random_map(vary)
            .repeat()[process_index::process_count]
            .batch(
                batch_size // process_count,
                drop_remainder=True,
                batch_fn=functools.partial(examples.stack, canvas=canvas, positions=positions),
            )
        )
    if len(datasets) == 1:
        return datasets[0]
    return grain.MapDataset.mix(datasets, [len(order) for order in orders.values()])


def _orders(
    source: Source, canvases: Sequence[Size], rates: Float64[np.ndarray, " n"] | None
) -> dict[Size, grain.MapDataset]:
    """The indices of each canvas's images in an epoch."""
    groups = group_by_canvas(source, canvases)
    if rates is None:
        return {canvas: grain.MapDataset.source(group) for canvas, group in groups.items()}
    if len(rates) != len(source) or not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(
            f"rates must be one finite number >= 0 for each of {len(source)} images: got {rates}"
        )
    drawn = {canvas: group for canvas, group in groups.items() if rates[group].any()}
    if not drawn:
        raise ValueError("rates must not all be 0: got nothing to draw")
    return {canvas: RatedIndices(group, rates[group]) for canvas, group in drawn.items()}


def _rows(source: Source, n_objects: int, mask_side: int | None, *, with_keypoints: bool) -> Rows:
    if mask_side is not None and all(a.segments is None for a in source.annotations):
        raise ValueError(f"mask_side is for sets with segments: got {mask_side} for {source.name}")
    if with_keypoints and not source.keypoint_names:
        raise ValueError(f"with_keypoints is for sets with keypoints: got True for {source.name}")
    return Rows(n_objects, mask_side, len(source.keypoint_names) if with_keypoints else None)


def eval_pipeline(
    source: Source,
    *,
    canvases: Sequence[Size] | ShortSide,
    batch_size: int,
    max_objects: int | None = None,
    mask_side: int | None = None,
    with_keypoints: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Every image once, in order, unvaried; a canvas's last batch is filled up.

    Args:
      source: Annotated pictures.
      canvases: As in `train_pipeline`; or a rule that gives each image a size and a canvas of its
        own. Pixels are then float32, see `resize.bilinear`.
      batch_size: Images of the global batch, over all processes.
      max_objects: Rows for objects; the data set's largest count if None.
      mask_side: As in `train_pipeline`.
      with_keypoints: As in `train_pipeline`.
      process_index: Which slice of the global batch to read.
      process_count: How many slices there are.

    Returns:
      A finite data set of `Batch`. Rows that fill up have `records == -1` and size (0, 0).
    """
    _check_batch(source, batch_size, process_index, process_count)
    if max_objects is None:
        max_objects = max_object_count(source)
    rows = _rows(source, max_objects, mask_side, with_keypoints=with_keypoints)
    source = _without(source, segments=mask_side is None, keypoints=not with_keypoints)
    rule = canvases if isinstance(canvases, ShortSide) else None
    batches = [
        (canvas, indices[start : start + batch_size])
        for canvas, indices in group_by_canvas(source, canvases).items()
        for start in range(0, len(indices), batch_size)
    ]
    positions = tuple(range(process_index, batch_size, process_count))

    read = functools.partial(_read_plain, source=source, rows=rows, positions=positions, rule=rule)
    return grain.MapDataset.source(
        [(canvas, [*indices, *[-1] * (batch_size - len(indices))]) for canvas, indices in batches]
    ).map(read)


def _without(source: Source, *, segments: bool, keypoints: bool) -> Source:
    """The source without what nobody asked for, which then need not be moved along."""
    gone: dict[str, None] = {}
    if segments:
        gone["segments"] = None
    if keypoints:
        gone["keypoints"] = None
    annotations = tuple(annotation._replace(**gone) for annotation in source.annotations)
    return dataclasses.replace(source, annotations=annotations)


def _read_plain(
    batch: tuple[Size, Sequence[int]],
    *,
    source: Source,
    rows: Rows,
    positions: Sequence[int],
    rule: ShortSide | None,
) -> Batch:
    canvas, indices = batch
    read = [
        examples.plain_example(
            indices[position], source=source, canvas=canvas, rows=rows, rule=rule
        )
        for position in positions
    ]
    return examples.stack(read, canvas=canvas, positions=positions)


def iterate(
    dataset: grain.MapDataset,
    start: int = 0,
    *,
    threads: int = 1,
    workers: int = 0,
    buffer: int = 4,
) -> Iterator[Batch]:
    """Reads batches ahead, from number `start` on; the same ones for any number of readers.

    Threads suffice while most of the time goes into decoding, resizing and colours, which run
    side by side; worker processes are for what Python itself computes, and start in seconds.

    Args:
      dataset: What `train_pipeline` or `eval_pipeline` returned.
      start: Number of the first batch, >= 0.
      threads: How many threads read, in each process; 0 reads when asked.
      workers: How many processes read; 0 is this one.
      buffer: Most batches read ahead, >= threads and workers.

    Returns:
      An iterator; closing it, or its end, stops threads and workers.

    Raises:
      DataError: A worker died, with its exit code; after the first batch with its number, too.
    """
    if min(start, threads, workers) < 0:
        raise ValueError(
            f"start, threads and workers must be >= 0: got {start}, {threads} and {workers}"
        )
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(buffer, threads) if threads else 0
    )
    reader = dataset[start:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's processes look at absl's flags.
            flags.FLAGS.mark_as_parsed()
        each = math.ceil(max(buffer, workers) / workers)
        reader = reader.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=each),
            worker_init_fn=_begin_worker,
        )
    return _drain(reader, workers)


def _begin_worker(*_: int) -> None:
    """A signal to all processes of a run is left to the parent; a worker ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _drain(dataset: grain.IterDataset, n_workers: int) -> Iterator[Batch]:
    batches, others = iter(dataset), set(multiprocessing.active_children())
    workers: list[BaseProcess] = []
    patience = PATIENCE
    try:
        for batch in batches:
            workers = workers or _started_since(others, n_workers)
            yield batch
    except GeneratorExit:
        raise
    except BaseException as error:  # Also a signal, wherever it finds this function.
        patience = 0.0
        workers = workers or _started_since(others, n_workers)
        _explain_death(error, workers, n_workers)
        raise
    finally:
        late = threading.Timer(patience, _kill, [workers])
        # Closing waits for the batches that they are at. At Python's end, where no thread starts
        # any more, Grain has ended them.
        if any(worker.is_alive() for worker in workers):
            late.start()
        batches.close()
        late.cancel()


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _started_since(others: set[BaseProcess], n_workers: int) -> list[BaseProcess]:
    started = set(multiprocessing.active_children()) - others
    return sorted(started, key=lambda worker: worker.pid or 0)[:n_workers]


def _explain_death(error: BaseException, workers: Sequence[BaseProcess], n_workers: int) -> None:
    if not isinstance(error, RuntimeError):
        return
    dead = [
        f"worker {number} (process {worker.pid}): {worker.exitcode}"
        for number, worker in enumerate(workers)
        if worker.exitcode
    ]
    # One that never gave a batch is known from what Grain says alone.
    if dead := dead or re.findall(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
        raise DataError(
            f"A data worker is dead, of {n_workers}; its exit code (-9: killed, often for memory): "
            f"{', '.join(dead)}. The same command goes on from the last checkpoint; fewer "
            "--workers need less memory."
        ) from error


def max_object_count(source: Source, *, augmentation: Augmentation = Augmentation()) -> int:
    """The most objects that one image has, times the pictures that augmentation puts on it.

    At least 1, so that arrays have a row.
    """
    most = max([1, *(len(annotation.labels) for annotation in source.annotations)])
    return most * augmentation.n_pictures


def count_cut(
    source: Source, max_objects: int, *, augmentation: Augmentation = Augmentation()
) -> int:
    """How many objects of an epoch do not fit when an image has `max_objects` rows.

    Args:
      source: Annotated pictures.
      max_objects: Rows of an image.
      augmentation: With mosaics or pasted objects, one epoch's partners are drawn, and all of
        their objects counted, also those that will not be in view: the number is an upper bound.

    Returns:
      Of the set's objects as they are, exactly; with partners about.
    """
    counts = np.array([len(a.labels) for a in source.annotations], int)
    total, rng = counts.copy(), np.random.default_rng(0)
    for share, others in ((augmentation.mosaic, MOSAIC - 1), (augmentation.copy_paste, 1)):
        if share:
            joined = counts[rng.integers(len(counts), size=(len(counts), others))].sum(axis=1)
            total += joined * (rng.uniform(size=len(counts)) < share)
    return int(np.maximum(0, total - max_objects).sum())


def group_by_canvas(source: Source, canvases: Sequence[Size] | ShortSide) -> dict[Size, list[int]]:
    """Indices of the images of each canvas, in order; canvases without images are left out."""
    if isinstance(canvases, ShortSide):
        found: dict[Size, list[int]] = {}
        for index, annotation in enumerate(source.annotations):
            found.setdefault(canvases.canvas(annotation.size), []).append(index)
        return found
    if not canvases:
        raise ValueError("at least one canvas is needed: got none")
    groups: dict[Size, list[int]] = {(height, width): [] for height, width in canvases}
    for index, annotation in enumerate(source.annotations):
        groups[choose_canvas(annotation.size, canvases)].append(index)
    return {canvas: indices for canvas, indices in groups.items() if indices}


def choose_canvas(size: Size, canvases: Sequence[Size]) -> Size:
    """The canvas of which the resized image fills the largest part; the first of equals."""

    def filled(canvas: Size) -> float:
        height, width = transforms.resized_size(size, canvas)
        return height * width / (canvas[0] * canvas[1])

    height, width = max(canvases, key=filled)
    return height, width


def _check_batch(source: Source, batch_size: int, index: int, count: int) -> None:
    if not len(source):
        raise ValueError(f"{source.name} has no images")
    if batch_size < 1 or batch_size % count or not 0 <= index < count:
        raise ValueError(
            f"batch_size must be a multiple of process_count, process_index below it: got "
            f"batch_size {batch_size}, process_count {count}, process_index {index}"
        )
