"""Outlines and bitmaps of objects: moved, drawn on a picture, put into the frame of a box.

points    [p, 2], (x, y), pixels; column i covers [i, i + 1)
matrix    [2, 3]: (x', y') = matrix @ (x, y, 1)

A pixel of a drawn mask belongs to the object if at least half of its FINE x FINE parts do.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from jaxdet.data.records import Bitmap, Polygons, Segment

FINE = 4

Matrix = Float64[np.ndarray, "2 3"]


def transform(points: Float[np.ndarray, "p 2"], matrix: Matrix) -> Float32[np.ndarray, "p 2"]:
    """The points after an affine map."""
    return (points @ matrix[:, :2].T + matrix[None, :, 2]).astype(np.float32)


def move_segment(segment: Segment, matrix: Matrix, size: tuple[int, int]) -> Segment:
    """A segment after an affine map of the picture.

    Args:
      segment: In pixels of the picture.
      matrix: From there to the view.
      size: (height, width) of the view.

    Returns:
      What of the segment is inside the view, which may be nothing.
    """
    if isinstance(segment, Polygons):
        rings = (_clipped(transform(ring, matrix), size) for ring in segment.rings)
        return Polygons(tuple(ring for ring in rings if len(ring)))
    mask, (x, y) = segment.mask, segment.corner
    height, width = mask.shape
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]], float)
    moved = transform(corners, matrix)
    limit = np.array([size[1], size[0]])
    x1, y1 = np.clip(np.floor(moved.min(axis=0)), 0, limit).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(moved.max(axis=0)), 0, limit).astype(int).tolist()
    to_cells = matrix @ np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
    to_cells[:, 2] -= (x1, y1)
    return Bitmap(_sampled(mask, to_cells, (y2 - y1, x2 - x1)), (x1, y1))


def _clipped(ring: Float32[np.ndarray, "_ 2"], size: tuple[int, int]) -> Float32[np.ndarray, "_ 2"]:
    """The outline of what a ring has inside the view; parts of it may run along the view's edge."""
    limit = np.array([size[1], size[0]], np.float32)
    if not len(ring) or ((ring.min(axis=0) >= 0).all() and (ring.max(axis=0) <= limit).all()):
        return ring
    for axis, sign, edge in ((0, 1, 0), (0, -1, limit[0]), (1, 1, 0), (1, -1, limit[1])):
        depth = sign * (ring[:, axis] - edge)
        ahead, following = np.roll(depth, -1), np.roll(ring, -1, axis=0)
        inside = depth >= 0
        crosses = inside != (ahead >= 0)
        share = depth / np.where(crosses, depth - ahead, 1)
        crossing = ring + share[:, None] * (following - ring)
        ring = np.stack([ring, crossing], axis=1)[np.stack([inside, crosses], axis=1)]
    return ring


def shift(segment: Segment, x: int, y: int) -> Segment:
    """The segment so many whole pixels to the right and down."""
    if isinstance(segment, Polygons):
        offset = np.array([[x, y]], np.float32)
        return Polygons(tuple(ring + offset for ring in segment.rings))
    return Bitmap(segment.mask, (segment.corner[0] + x, segment.corner[1] + y))


def segment_box(segment: Segment) -> Float32[np.ndarray, " 4"]:
    """The smallest box around a segment; zeros around none."""
    if isinstance(segment, Polygons):
        if not segment.rings:
            return np.zeros(4, np.float32)
        points = np.concatenate(segment.rings)
        return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float32)
    mask = segment.mask
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(4, np.float32)
    x, y = segment.corner
    box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
    return np.array(box, np.float32)


def draw_segment(
    segment: Segment, box: Float32[np.ndarray, " 4"], size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """The pixels that a segment covers of its box.

    Args:
      segment: In pixels of the picture.
      box: xyxy pixels of the picture; what lies outside is left out, to whole pixels.
      size: (height, width) of the picture.

    Returns:
      A mask of the whole picture.
    """
    canvas = np.zeros(size, bool)
    limit = np.array([size[1], size[0]])
    x1, y1 = np.clip(np.floor(box[:2]), 0, limit).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(box[2:]), 0, limit).astype(int).tolist()
    if x2 > x1 and y2 > y1:
        to_cells = np.array([[1.0, 0.0, -x1], [0.0, 1.0, -y1]])
        canvas[y1:y2, x1:x2] = _cells(segment, to_cells, (y2 - y1, x2 - x1))
    return canvas


def bitmap_of(mask: Bool[np.ndarray, "h w"]) -> Bitmap:
    """A mask of a whole picture, without the rows and columns around it."""
    x1, y1, x2, y2 = segment_box(Bitmap(mask, (0, 0))).astype(int).tolist()
    return Bitmap(mask[y1:y2, x1:x2], (x1, y1))


def frame_mask(
    segment: Segment, box: Float32[np.ndarray, " 4"], side: int
) -> Bool[np.ndarray, "s s"]:
    """What a segment covers of its box, the box stretched onto a square.

    Args:
      segment: In the pixels of `box`.
      box: xyxy pixels, with an area.
      side: Of the square, cells.

    Returns:
      The cells that belong to the object.
    """
    scale = side / (box[2:] - box[:2]).astype(float)
    to_cells = np.column_stack([np.diag(scale), -box[:2] * scale])
    return _cells(segment, to_cells, (side, side))


def _cells(segment: Segment, to_cells: Matrix, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if isinstance(segment, Polygons):
        return _filled([transform(ring, to_cells) for ring in segment.rings], size)
    x, y = segment.corner
    matrix = to_cells @ np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
    return _sampled(segment.mask, matrix, size)


def _filled(
    rings: Sequence[Float32[np.ndarray, "_ 2"]], size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    height, width = size[0] * FINE, size[1] * FINE
    fine, middles = np.zeros((height, width), np.uint8), np.arange(height) + 0.5
    for ring in rings:
        (x1, y1), (x2, y2) = (
            FINE * ring.T.astype(float),
            FINE * np.roll(ring, -1, 0).T.astype(float),
        )
        # Every point is inside that has an odd number of crossings to its left.
        edge, row = np.nonzero((y1[:, None] > middles) != (y2[:, None] > middles))
        slope = (x2[edge] - x1[edge]) / (y2[edge] - y1[edge])
        crossing = x1[edge] + (middles[row] - y1[edge]) * slope
        column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
        crossings = np.zeros((height, width + 1), np.uint8)
        np.bitwise_xor.at(crossings, (row, column), 255)
        fine |= np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1]
    return _majority(fine, size)


def _sampled(
    mask: Bool[np.ndarray, "_ _"], matrix: Matrix, size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    if not mask.size or not all(size):
        return np.zeros(size, bool)
    index = index_matrix(FINE * matrix)
    fine = cv2.warpAffine(
        mask.astype(np.uint8) * 255,
        index,
        (size[1] * FINE, size[0] * FINE),
        flags=cv2.INTER_NEAREST,
    )
    return _majority(fine, size)


def _majority(fine: np.ndarray, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    return cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA) >= 128


def index_matrix(matrix: Matrix) -> Matrix:
    """The same map for OpenCV, to which whole numbers are the middles of pixels."""
    index = matrix.copy()
    index[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5
    return index
