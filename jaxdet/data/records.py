"""What a data source is made of: annotations in memory, pictures read one at a time.

Shape letters: n objects of a picture, h and w its height and width in pixels, j keypoints of an
object, p corners of an outline.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

# What is larger is refused before it is decoded: 300 MB.
MAX_PIXELS = 100_000_000


class DataError(ValueError):
    """A fault in somebody's files, or in reading them; says where, what was found, what to do."""


class Polygons(NamedTuple):
    """An object by the outlines of its parts, whose union it is."""

    rings: tuple[Float32[np.ndarray, "_ 2"], ...]  # (x, y), pixels; column i is [i, i + 1).


class Bitmap(NamedTuple):
    """An object by its pixels."""

    mask: Bool[np.ndarray, "_ _"]  # A piece of the picture, or all of it.
    corner: tuple[int, int]  # (x, y) of the mask's top left pixel in the picture.


class StoredBitmap(NamedTuple):
    """A `Bitmap` that is decoded each time its mask is asked for."""

    read: Callable[[], Bool[np.ndarray, "_ _"]]  # Can be pickled.
    corner: tuple[int, int] = (0, 0)

    @property
    def mask(self) -> Bool[np.ndarray, "_ _"]:
        """As in `Bitmap`."""
        return self.read()


Segment = Polygons | Bitmap | StoredBitmap


class Annotation(NamedTuple):
    """What is known of one picture without opening it."""

    image_id: int  # The data set's own number, as in its results files.
    name: str  # File or example name, for messages.
    size: tuple[int, int]  # (height, width), pixels.
    boxes: Float32[np.ndarray, "n 4"]  # xyxy pixels, half-open, inside the picture.
    labels: Int32[np.ndarray, " n"]  # 1..k.
    crowd: Bool[np.ndarray, " n"]  # A region of many objects.
    difficult: Bool[np.ndarray, " n"]  # One object, counted neither for nor against.
    areas: Float32[np.ndarray, " n"] | None = None  # Of the masks, px^2, where known.
    segments: tuple[Segment | None, ...] | None = None  # One an object; None where it has none.
    keypoints: Float32[np.ndarray, "n j 3"] | None = (
        None  # x, y, 0: not labelled, 1: hidden, 2: seen.
    )
    captions: tuple[str, ...] = ()  # Of the whole picture.

    @property
    def objects(self) -> Bool[np.ndarray, " n"]:
        """Rows to be found: no crowd or difficult object."""
        return ~self.crowd & ~self.difficult


@dataclasses.dataclass(frozen=True)
class Source:
    """Annotated pictures with random access: `source[i]` is (pixels, annotation)."""

    name: str
    """What messages call it: a path and a split."""
    classes: tuple[str, ...]
    """Name of label 1, 2, ..."""
    annotations: tuple[Annotation, ...]
    """One a picture, those without objects included."""
    read: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    """Index to RGB pixels; can be pickled."""
    category_ids: tuple[int, ...] = ()
    """The data set's own number of label 1, 2, ...; 1..k if none are given."""
    notes: tuple[str, ...] = ()
    """What the reader left out or changed, one sentence each."""
    keypoint_names: tuple[str, ...] = ()
    """Of keypoint 0, 1, ...; the j of the annotations' keypoints."""
    keypoint_pairs: tuple[tuple[int, int], ...] = ()
    """Which of them change places in a mirror image, such as left and right eye."""

    def __post_init__(self) -> None:
        ids = self.category_ids or tuple(range(1, len(self.classes) + 1))
        if len(ids) != len(self.classes):
            raise ValueError(f"one category id a class: got {ids} for {self.classes}")
        object.__setattr__(self, "category_ids", ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures, for messages."""
        return tuple(annotation.name for annotation in self.annotations)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], Annotation]:
        pixels, annotation = self.read(index), self.annotations[index]
        if pixels.shape[:2] != tuple(annotation.size):
            raise DataError(
                f"{annotation.name}: the picture is {pixels.shape[0]} x {pixels.shape[1]} "
                f"(height x width), its annotation says {annotation.size[0]} x "
                f"{annotation.size[1]}. Correct width and height (and the boxes, if the two were "
                "exchanged because EXIF data turn the picture), or put the right picture there."
            )
        return pixels, annotation


def inside(
    boxes: Float32[np.ndarray, "n 4"], size: tuple[int, int]
) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Clips boxes to their picture.

    Args:
      boxes: xyxy pixels.
      size: (height, width) of the picture.

    Returns:
      The clipped boxes; which of them have an area; which of those were moved by more than a pixel.
    """
    clipped = np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32)[None])
    solid = np.all((clipped[:, 2:] > clipped[:, :2]) & (boxes[:, 2:] > boxes[:, :2]), axis=1)
    return clipped, solid, solid & np.any(np.abs(clipped - boxes) > 1, axis=1)


def check_size(size: tuple[int, int], where: str) -> tuple[int, int]:
    """Returns a (height, width) that somebody's file states, if a picture can have it."""
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{where}: height {size[0]} and width {size[1]} must be >= 1, with at most "
            f"{MAX_PIXELS} pixels. Write the picture's."
        )
    return size
