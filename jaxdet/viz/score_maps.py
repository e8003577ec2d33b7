"""Maps of scores over pictures.

image     uint8, [height, width, 3], RGB. Every function returns a new one of the same size.
"""

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8

OPACITY = 0.6


def draw_scores(
    image: UInt8[np.ndarray, "h w 3"],
    scores: Float[np.ndarray, "rows columns"],
    windows: Float[np.ndarray, "rows columns 4"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a map of scores over the picture: each in a cell around the center of its window.

    Args:
      image: The picture.
      scores: 0 (dark) to 1 (bright), of a regular grid of windows.
      windows: xyxy pixels of the picture.

    Returns:
      The picture in grey under the map; beyond the outermost cells it is as it was.
    """
    centers = (windows[..., :2] + windows[..., 2:]) / 2
    n_rows, n_columns = scores.shape
    first, last = centers[0, 0], centers[-1, -1]
    # A cell is as large as the windows are apart; a single one as large as its window.
    step = np.where(
        [n_columns > 1, n_rows > 1],
        (last - first) / np.maximum([n_columns - 1, n_rows - 1], 1),
        windows[0, 0, 2:] - windows[0, 0, :2],
    )
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    column = np.floor((x - first[0]) / step[0] + 0.5).astype(int)
    row = np.floor((y - first[1]) / step[1] + 0.5).astype(int)
    inside = (row >= 0) & (row < n_rows) & (column >= 0) & (column < n_columns)
    values = scores[np.clip(row, 0, n_rows - 1), np.clip(column, 0, n_columns - 1)]
    colors = matplotlib.colormaps["inferno"](np.clip(values, 0, 1))[..., :3] * 255
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    mixed = (1 - OPACITY) * grey + OPACITY * colors
    return np.where(inside[..., None], mixed.round().astype(np.uint8), image)
