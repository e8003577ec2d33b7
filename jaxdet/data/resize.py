"""The sizes and pixels that torchvision's detectors give to a picture before they look at it.

Shape letters: h w of a picture, new_h new_w of what it becomes.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int, UInt8

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ShortSide:
    """Sizes by the shorter side: each picture has a canvas of its own, and so a compilation.

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.3, "re-scale"; rounding and
      padding are torchvision's (GeneralizedRCNNTransform, transform.py).
    """

    min_size: int = 800
    """The shorter side becomes this long, pixels, ..."""
    max_size: int = 1333
    """... unless the longer one would be longer than this."""
    divisor: int = 32
    """Sides of the canvas are multiples of it."""

    def __post_init__(self) -> None:
        if not (0 < self.min_size <= self.max_size and self.divisor > 0):
            raise ValueError(f"0 < min_size <= max_size and 0 < divisor must hold. Got {self}")

    def size(self, size: Size) -> Size:
        """Returns the (height, width) that a picture of this (height, width) is resized to."""
        scale = min(self.min_size / min(size), self.max_size / max(size))
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))

    def canvas(self, size: Size) -> Size:
        """Returns the (height, width) of the array that such a picture is laid on."""
        height, width = (-(-side // self.divisor) * self.divisor for side in self.size(size))
        return height, width


def bilinear(image: UInt8[np.ndarray, "h w 3"], size: Size) -> Float32[np.ndarray, "new_h new_w 3"]:
    """Resizes by linear interpolation between the four nearest pixels, shrinking too.

        out[i] = (1 - f) in[floor(x)] + f in[floor(x) + 1],   x = max((i + 1/2) h / new_h - 1/2, 0)

    along each axis, f the fraction of x.

    Args:
      image: The picture.
      size: (height, width) to give to it.

    Returns:
      Not rounded: 0 to 255.

    Source:
      Torch 2.13, `interpolate(mode="bilinear", align_corners=False)`, on CPU; equal to a few units
      in the last place, where OpenCV's is 0.02 off (0.8 on bytes).
    """
    rows, next_rows, down = _taps(image.shape[0], size[0])
    columns, next_columns, right = _taps(image.shape[1], size[1])
    wide = _blend(image[:, columns], image[:, next_columns], right.reshape(1, -1, 1))
    return _blend(wide[rows], wide[next_rows], down.reshape(-1, 1, 1))


def _taps(
    n_in: int, n_out: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The two cells that each cell of an axis is between, and how far it is from the first."""
    # Torch rounds the ratio to float32, then the position once more (a fused multiply-add).
    ratio = float(np.float32(n_in) / np.float32(n_out))
    position = np.maximum(ratio * (np.arange(n_out) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(position.astype(np.int64), n_in - 1)
    return low, np.minimum(low + 1, n_in - 1), position - low.astype(np.float32)


def _blend(first: np.ndarray, second: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    return first * (1 - fraction) + second * fraction
