"""One picture of a set to one row of a batch: read, varied or fitted, its objects in fixed rows."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from jaxdet.data import segments, transforms
from jaxdet.data.augment import Augmentation, augment
from jaxdet.data.records import Annotation, Source
from jaxdet.data.resize import ShortSide, bilinear
from jaxdet.data.transforms import Size, View
from jaxdet.structures import Batch, Images, Instances


class Rows(NamedTuple):
    """What a batch holds of the objects of an image."""

    n_objects: int
    mask_side: int | None = None  # Cells; no masks if None.
    n_keypoints: int | None = None  # No keypoints if None.


class Example(NamedTuple):
    """One image, still of its own size."""

    pixels: Shaped[np.ndarray, "h w 3"]  # uint8, or float32 where they were resized by a rule.
    instances: Instances  # Without the batch's axis.
    index: int  # In the source; -1 where a batch is filled up.


class CachedSource:
    """A source that keeps decoded pictures while there is room.

    Orders are random, so the first pictures to come are as good to keep as any: nothing is
    evicted, and what does not fit is decoded each time. A copy in another process begins empty.
    """

    def __init__(self, source: Source, limit: int) -> None:
        """Begins empty.

        Args:
          source: What to read from.
          limit: Most bytes to keep.
        """
        self.source, self._limit = source, limit
        self.__setstate__({"source": source, "_limit": limit})

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._room = self._limit
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> tuple[np.ndarray, Annotation]:
        pixels = self._kept.get(index)
        if pixels is not None:
            return pixels, self.source.annotations[index]
        pixels, annotation = self.source[index]
        with self._lock:
            if index not in self._kept and pixels.nbytes <= self._room:
                self._kept[index] = pixels
                self._room -= pixels.nbytes
        return pixels, annotation

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, Annotation]:
        """Any picture, each as likely as the others; one draw is made from `rng`."""
        return self[int(rng.integers(len(self.source)))]


def varied_example(
    index: int,
    rng: np.random.Generator,
    *,
    source: CachedSource,
    canvas: Size,
    augmentation: Augmentation,
    rows: Rows,
) -> Example:
    """Picture number `index`, varied by what `rng` draws."""
    pixels, annotation = augment(
        rng,
        *source[index],
        canvas,
        augmentation,
        partner=source.draw,
        keypoint_pairs=source.source.keypoint_pairs,
    )
    return Example(pixels, _padded(annotation, rows), index)


def plain_example(
    index: int, *, source: Source, canvas: Size, rows: Rows, rule: ShortSide | None = None
) -> Example:
    """Picture number `index` as large as the canvas allows; an empty one for -1.

    Args:
      index: In the source.
      source: The pictures.
      canvas: (height, width) of the batch's pictures.
      rows: What to hold of the objects.
      rule: Gives pictures their size, and pixels as torch resizes them, float32.
    """
    if index < 0:
        nothing = np.zeros(0, bool)
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        empty = Annotation(-1, "", (0, 0), no_boxes, no_labels, nothing, nothing)
        no_pixels = np.zeros((0, 0, 3), np.uint8 if rule is None else np.float32)
        return Example(no_pixels, _padded(empty, rows), -1)
    image, annotation = source[index]
    if rule is None:
        view = transforms.fitting_view(annotation.size, canvas)
        pixels = transforms.render(image, view)
    else:
        size = rule.size(annotation.size)
        view = View((0, 0, *annotation.size), (0, 0, *size), size)
        pixels = bilinear(image, size)
    annotation = transforms.move_annotation(annotation, view)
    return Example(pixels, _padded(annotation, rows), index)


def _padded(annotation: Annotation, rows: Rows) -> Instances:
    """One image's objects in a fixed number of rows, those that count first."""
    ignored = ~annotation.objects
    order = np.argsort(ignored, kind="stable")[: rows.n_objects]

    def pad(values: np.ndarray) -> np.ndarray:
        padded = np.zeros((rows.n_objects, *values.shape[1:]), values.dtype)
        padded[: len(order)] = values[order]
        return padded

    keypoints = None
    if rows.n_keypoints is not None:
        known = annotation.keypoints
        unknown = np.zeros((len(ignored), rows.n_keypoints, 3), np.float32)
        keypoints = pad(unknown if known is None else known)
    return Instances(
        boxes=pad(annotation.boxes),
        labels=pad(annotation.labels),
        valid=np.arange(rows.n_objects) < len(order),
        crowd=pad(annotation.crowd),
        difficult=pad(annotation.difficult),
        masks=None if rows.mask_side is None else pad(_masks(annotation, rows.mask_side)),
        keypoints=keypoints,
    )


def _masks(annotation: Annotation, side: int) -> Bool[np.ndarray, "n s s"]:
    masks = np.zeros((len(annotation.labels), side, side), bool)
    for i, segment in enumerate(annotation.segments or ()):
        box = annotation.boxes[i]
        if segment is not None and (box[2:] > box[:2]).all():
            masks[i] = segments.frame_mask(segment, box, side)
    return masks


def stack(examples: Sequence[Example], *, canvas: Size, positions: Sequence[int]) -> Batch:
    """A batch of examples, each picture in the top left corner of a canvas.

    Args:
      examples: The images, none larger than the canvas.
      canvas: (height, width) of the batch's pictures.
      positions: Their places in the global batch.

    Returns:
      The batch.
    """
    pixels = np.zeros((len(examples), *canvas, 3), examples[0].pixels.dtype)
    sizes = np.zeros((len(examples), 2), np.int32)
    for row, example in enumerate(examples):
        height, width = sizes[row] = example.pixels.shape[:2]
        pixels[row, :height, :width] = example.pixels
    fields = zip(*(example.instances for example in examples), strict=True)
    return Batch(
        Images(pixels, sizes),
        Instances(*(None if field[0] is None else np.stack(field) for field in fields)),
        records=np.array([example.index for example in examples], np.int32),
        positions=np.array(positions, np.int32),
    )
