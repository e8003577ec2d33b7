"""Picture files to pixels; what is cut off or unreadable is an error with the file's name."""

import dataclasses
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxdet.data.records import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def read_picture(path: pathlib.Path, *, orientation: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture file, grey ones and those with alpha included.

    Args:
      path: The file.
      orientation: Turn the picture as its EXIF data says. Annotated data wants False: its boxes
        were drawn on the pixels as they are stored. Pictures to predict on want True.

    Returns:
      RGB pixels.
    """
    how = cv2.IMREAD_COLOR | (0 if orientation else cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = cv2.imdecode(np.frombuffer(read_complete(path), np.uint8), how)
    if pixels is None:
        raise DataError(f"{path}: not a picture that OpenCV can read. Replace or remove it.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def read_complete(path: pathlib.Path) -> bytes:
    """The bytes of a picture file, once its end is seen to be there.

    OpenCV fills up what a truncated file lacks with grey and says nothing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Put it there.") from error
    if not _ends(data):
        raise DataError(
            f"{path}: the picture is cut off ({len(data)} bytes). Copy it again or remove it."
        )
    return data


def _ends(data: bytes) -> bool:
    """Whether the format's end marker follows its last data; other formats show when decoded."""
    if data.startswith(b"\xff\xd8"):
        # Compressed data never holds either marker, but thumbnails before it hold both.
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND\xae\x42\x60\x82" in data
    return len(data) > 0


@dataclasses.dataclass(frozen=True)
class PictureFiles:
    """Reads picture number i of a list of files; the `read` of a source on disk."""

    paths: tuple[pathlib.Path, ...]

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of picture number `index`."""
        return read_picture(self.paths[index])

    def select(self, indices: Sequence[int]) -> "PictureFiles":
        """The files of these indices, in this order."""
        return PictureFiles(tuple(self.paths[index] for index in indices))
