"""Picture files to pixels; what is cut off or unreadable is an error with the file's name."""

import dataclasses
import io
import pathlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxdet.data.records import DataError, check_size

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


# Pillow says what a header holds, and leaves it to `check_size` whether that is too much.
Image.MAX_IMAGE_PIXELS = None


class Header(NamedTuple):
    """What the beginning of a picture file says."""

    size: tuple[int, int]  # (height, width) of the pixels as they are stored.
    mode: str  # Pillow's: "RGB", "L", "RGBA", "P", "CMYK", "I;16", ...
    orientation: int  # EXIF's, 1 to 8: from 2 on the picture is to be turned or mirrored.

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the picture as it is to be shown."""
        height, width = self.size
        return (height, width) if self.orientation < 5 else (width, height)


def read_header(path: pathlib.Path) -> Header:
    """Looks at the beginning of a picture file only."""
    return parse_header(path, path)


def read_picture(path: pathlib.Path, *, orientation: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture file, grey ones and those with alpha included.

    Args:
      path: The file.
      orientation: Turn the picture as its EXIF data says. Pictures to predict on want True;
        annotated ones what their annotations were drawn on.

    Returns:
      RGB pixels.
    """
    return decode(read_complete(path), path, orientation=orientation)


def decode(
    data: bytes, where: pathlib.Path | str, *, orientation: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an encoded picture; `where` is for messages, the rest as in `read_picture`."""
    header = parse_header(data, where)  # Before OpenCV makes room for what the header says.
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.cvtColor(_decode(data, how, where), cv2.COLOR_BGR2RGB)
    return _turned(pixels, header.orientation) if orientation else pixels


def decode_mask(data: bytes, where: pathlib.Path | str) -> Bool[np.ndarray, "h w"]:
    """Pixels of an encoded mask: those that are not black, nor transparent."""
    parse_header(data, where)
    how = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = _decode(data, how, where)
    if pixels.ndim == 2:
        return np.asarray(pixels > 0)
    mask = np.any(pixels[..., :3], axis=-1)
    return mask & (pixels[..., 3] > 0) if pixels.shape[2] == 4 else mask


def read_mask(path: pathlib.Path) -> Bool[np.ndarray, "h w"]:
    """Reads a mask file; see `decode_mask`."""
    return decode_mask(read_complete(path), path)


def parse_header(picture: bytes | pathlib.Path, where: pathlib.Path | str) -> Header:
    """What an encoded picture, or a file, says of itself; `where` is for messages."""
    stream = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream) as opened:
                width, height = opened.size
                header = Header((height, width), opened.mode, _orientation(opened))
    except UnidentifiedImageError as error:
        raise DataError(
            f"{where}: not a picture that can be read. Replace or remove it."
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}). Put it there.") from error
    except Exception as error:  # Pillow's readers raise whatever broken files lead them to.
        raise DataError(f"{where}: has a broken header ({error}). Replace it.") from error
    check_size(header.size, f"{where}: its header")
    return header


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What is to be shown; Pillow and OpenCV do not always find the same orientation."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(picture: Image.Image) -> int:
    if "exif" not in picture.info:  # Pillow would decode a PNG to look behind its pixels.
        return 1
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Broken EXIF data do not spoil the pixels.
        return 1
    return found if found in range(1, 9) else 1


def _decode(data: bytes, how: int, where: pathlib.Path | str) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:  # Sizes that OpenCV refuses.
        pixels = None
    if pixels is None:
        raise DataError(f"{where}: not a picture that can be read. Replace or remove it.")
    return pixels


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


def doubts(data: bytes) -> str | None:
    """What libjpeg says of a JPEG file that is damaged, or has stray bytes within its data.

    OpenCV makes up the rest of such a picture, and names no file where it complains.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError as error:
        return str(error)
    return None


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
    upright: bool = False
    """Whether pictures are turned as their EXIF data says."""

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of picture number `index`."""
        return read_picture(self.paths[index], orientation=self.upright)

    def encoded(self, index: int) -> bytes:
        """Picture number `index` as it is in its file, complete."""
        return read_complete(self.paths[index])

    def where(self, index: int) -> str:
        """What messages call picture number `index`."""
        return str(self.paths[index])

    def select(self, indices: Sequence[int]) -> "PictureFiles":
        """The files of these indices, in this order."""
        return dataclasses.replace(self, paths=tuple(self.paths[index] for index in indices))
