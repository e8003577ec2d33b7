"""Batches as a pure function of their number: `train_pipeline(...)[i]` is batch i, whoever asks.

A batch depends on the seed and its number only: not on threads, on the batches read before, or,
with several processes, on how the images of the global batch are dealt out among them.
"""

import functools
import threading
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np

from jaxdet.data import augment as augmentations
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Annotation, Source
from jaxdet.data.resize import ShortSide, bilinear
from jaxdet.structures import Batch, Images, Instances

Size = tuple[int, int]

# Grain's threads are the parallelism; OpenCV's own pool would fight XLA's for the same cores.
cv2.setNumThreads(0)

CACHE_BYTES = 1 << 29


def train_pipeline(
    source: Source,
    *,
    canvases: Sequence[Size],
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    max_objects: int | None = None,
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
      max_objects: Rows for objects; the data set's largest count if None. See `count_cut`.
      process_index: Which slice of the global batch to read.
      process_count: How many slices there are.
      cache_bytes: Decoded pictures are kept in memory up to this size.

    Returns:
      A data set of `Batch`, random access: one canvas a batch, canvases in turn by their share of
      the images.
    """
    _check_batch(source, batch_size, process_index, process_count)
    rows = max_object_count(source) if max_objects is None else max_objects
    pictures = _Cached(source, cache_bytes)
    groups = group_by_canvas(source, canvases)
    datasets = []
    for number, (canvas, indices) in enumerate(groups.items()):
        vary = functools.partial(
            _training_example, source=pictures, canvas=canvas, augmentation=augmentation, rows=rows
        )
        positions = range(process_index, batch_size, process_count)
        datasets.append(
            grain.MapDataset.source(indices)
            .seed((seed + 7919 * number) % 2**32)
            .shuffle()
            .random_map(vary)
            .repeat()[process_index::process_count]
            .batch(
                batch_size // process_count,
                drop_remainder=True,
                batch_fn=functools.partial(_stack, positions=tuple(positions)),
            )
        )
    if len(datasets) == 1:
        return datasets[0]
    return grain.MapDataset.mix(datasets, [len(indices) for indices in groups.values()])


def eval_pipeline(
    source: Source,
    *,
    canvases: Sequence[Size] | ShortSide,
    batch_size: int,
    max_objects: int | None = None,
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
      process_index: Which slice of the global batch to read.
      process_count: How many slices there are.

    Returns:
      A finite data set of `Batch`. Rows that fill up have `records == -1` and size (0, 0).
    """
    _check_batch(source, batch_size, process_index, process_count)
    rows = max_object_count(source) if max_objects is None else max_objects
    rule = canvases if isinstance(canvases, ShortSide) else None
    batches = [
        (canvas, indices[start : start + batch_size])
        for canvas, indices in group_by_canvas(source, canvases).items()
        for start in range(0, len(indices), batch_size)
    ]
    positions = tuple(range(process_index, batch_size, process_count))

    def read(batch: tuple[Size, Sequence[int]]) -> Batch:
        canvas, indices = batch
        filled = [*indices, *[-1] * (batch_size - len(indices))]
        examples = [_plain_example(filled[p], source, canvas, rows, rule) for p in positions]
        return _stack(examples, positions=positions)

    return grain.MapDataset.source(batches).map(read)


def iterate(
    dataset: grain.MapDataset, start: int = 0, *, threads: int = 1, buffer: int = 4
) -> Iterator[Batch]:
    """Reads batches ahead, from number `start` on; the same ones for any number of threads.

    Args:
      dataset: What `train_pipeline` or `eval_pipeline` returned.
      start: Number of the first batch, >= 0.
      threads: How many threads read; 0 reads when asked.
      buffer: Most batches read ahead, >= threads.

    Returns:
      An iterator; closing it, or its end, stops the threads.
    """
    if start < 0 or threads < 0:
        raise ValueError(f"start and threads must be >= 0: got {start} and {threads}")
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(buffer, threads) if threads else 0
    )
    return _drain(dataset[start:].to_iter_dataset(options))


def _drain(dataset: grain.IterDataset) -> Iterator[Batch]:
    batches = iter(dataset)
    try:
        yield from batches
    finally:
        batches.close()


def max_object_count(source: Source) -> int:
    """The most objects that one image has; at least 1, so that arrays have a row."""
    return max([1, *(len(annotation.labels) for annotation in source.annotations)])


def count_cut(source: Source, max_objects: int) -> int:
    """How many objects do not fit when an image has `max_objects` rows."""
    return sum(max(0, len(a.labels) - max_objects) for a in source.annotations)


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
        height, width = augmentations.resized_size(size, canvas)
        return height * width / (canvas[0] * canvas[1])

    height, width = max(canvases, key=filled)
    return height, width


class _Cached:
    """A source that keeps decoded pictures while there is room.

    Orders are random, so the first pictures to come are as good to keep as any: nothing is
    evicted, and what does not fit is decoded each time.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._room = source, limit
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> tuple[np.ndarray, Annotation]:
        pixels = self._kept.get(index)
        if pixels is not None:
            return pixels, self._source.annotations[index]
        pixels, annotation = self._source[index]
        with self._lock:
            if index not in self._kept and pixels.nbytes <= self._room:
                self._kept[index] = pixels
                self._room -= pixels.nbytes
        return pixels, annotation


_Example = tuple[np.ndarray, Size, Instances, int]


def _training_example(
    index: int,
    rng: np.random.Generator,
    *,
    source: _Cached,
    canvas: Size,
    augmentation: Augmentation,
    rows: int,
) -> _Example:
    image, annotation = source[index]
    pixels, annotation = augmentations.augment(rng, image, annotation, canvas, augmentation)
    return pixels, annotation.size, _padded(annotation, rows), index


def _plain_example(
    index: int, source: Source, canvas: Size, rows: int, rule: ShortSide | None
) -> _Example:
    dtype = np.uint8 if rule is None else np.float32
    if index < 0:
        nothing = np.zeros(0, bool)
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        empty = Annotation(-1, "", (0, 0), no_boxes, no_labels, nothing, nothing)
        return np.zeros((*canvas, 3), dtype), (0, 0), _padded(empty, rows), -1
    image, annotation = source[index]
    if rule is None:
        pixels, size, boxes = augmentations.fit_to_canvas(image, annotation.boxes, canvas)
    else:
        size = rule.size(annotation.size)
        pixels = np.zeros((*canvas, 3), dtype)
        pixels[: size[0], : size[1]] = bilinear(image, size)
        scale = np.array(size, np.float32) / np.array(annotation.size, np.float32)
        boxes = annotation.boxes * np.tile(scale[::-1], 2)[None]
    annotation = annotation._replace(boxes=boxes)
    return pixels, size, _padded(annotation, rows), index


def _padded(annotation: Annotation, rows: int) -> Instances:
    """One image's objects in a fixed number of rows, those that count first."""
    ignored = annotation.crowd | annotation.difficult
    order = np.argsort(ignored, kind="stable")[:rows]
    spare = rows - len(order)

    def pad(values: np.ndarray) -> np.ndarray:
        return np.pad(values[order], [(0, spare)] + [(0, 0)] * (values.ndim - 1))

    return Instances(
        boxes=pad(annotation.boxes),
        labels=pad(annotation.labels),
        valid=np.arange(rows) < len(order),
        crowd=pad(annotation.crowd),
        difficult=pad(annotation.difficult),
    )


def _stack(examples: Sequence[_Example], *, positions: Sequence[int]) -> Batch:
    pixels, sizes, instances, records = zip(*examples, strict=True)
    return Batch(
        Images(np.stack(pixels), np.array(sizes, np.int32)),
        Instances(*(np.stack(field) for field in zip(*instances, strict=True))),
        records=np.array(records, np.int32),
        positions=np.array(positions, np.int32),
    )


def _check_batch(source: Source, batch_size: int, index: int, count: int) -> None:
    if not len(source):
        raise ValueError(f"{source.name} has no images")
    if batch_size < 1 or batch_size % count or not 0 <= index < count:
        raise ValueError(
            f"batch_size must be a multiple of process_count, process_index below it: got "
            f"batch_size {batch_size}, process_count {count}, process_index {index}"
        )
