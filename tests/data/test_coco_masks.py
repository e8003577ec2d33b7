import functools

import numpy as np
import pytest

from jaxdet.data import coco_masks, segments
from jaxdet.data.records import Bitmap, DataError, Polygons, StoredBitmap
from jaxdet.geometry import rle

SIZE = (4, 5)
MASK = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
# Down the columns: 4 + 1 off, 1 on, 2 off, 2 on, ...
COUNTS = [5, 1, 2, 2, 2, 3, 5]
# By pycocotools 2.0.11, mask.encode(np.asfortranarray(MASK.astype(np.uint8))).
STRING = "5121013"


def parse(value, size=SIZE):
    return coco_masks.parse_segmentation(value, size, "f.segmentation")


def test_counts_by_hand():
    for counts in (COUNTS, STRING):
        segment = parse({"size": [4, 5], "counts": counts})
        np.testing.assert_array_equal(segment.mask, MASK)
        assert segment.corner == (0, 0)
    assert rle.encode(MASK) == {"size": [4, 5], "counts": STRING}


def test_strings_round_trip(rng):
    for _ in range(50):
        size = tuple(rng.integers(1, 60, 2).tolist())
        mask = rng.uniform(size=size) < rng.uniform()
        runs = rle.encode(mask)
        np.testing.assert_array_equal(parse(runs, size).mask, mask)


def test_a_square_covers_its_pixels():
    square = Polygons((np.array([[1, 1], [4, 1], [4, 3], [1, 3]], np.float32),))
    want = np.zeros(SIZE, bool)
    want[1:3, 1:4] = True
    np.testing.assert_array_equal(coco_masks.segment_mask(square, SIZE), want)
    for segment in (square, Bitmap(want, (0, 0))):
        np.testing.assert_array_equal(segments.segment_box(segment), (1, 1, 4, 3))


def test_rings_are_a_union():
    """Two squares that overlap, and one that reaches far out of the picture."""
    rings = ([[0, 0], [2, 0], [2, 2], [0, 2]], [[1, 1], [3, 1], [3, 3], [1, 3]])
    union = coco_masks.segment_mask(Polygons(tuple(np.array(r, np.float32) for r in rings)), SIZE)
    want = np.zeros(SIZE, bool)
    want[0:2, 0:2] = want[1:3, 1:3] = True
    np.testing.assert_array_equal(union, want)
    huge = Polygons((np.array([[-1e6, -1e6], [1e6, -1e6], [1e6, 2], [-1e6, 2]], np.float32),))
    assert coco_masks.segment_mask(huge, SIZE).sum() == 10


@pytest.mark.parametrize("corner", [(0, 0), (1, 2), (-2, -1), (4, 3), (9, 9)])
def test_bitmaps_are_cut_at_the_border(corner):
    piece = np.ones((3, 4), bool)
    want = np.zeros((20, 20), bool)
    want[8 + corner[1] : 11 + corner[1], 8 + corner[0] : 12 + corner[0]] = True
    got = coco_masks.segment_mask(Bitmap(piece, corner), SIZE)
    np.testing.assert_array_equal(got, want[8:12, 8:13])
    stored = StoredBitmap(functools.partial(np.copy, piece), corner)
    np.testing.assert_array_equal(coco_masks.segment_mask(stored, SIZE), got)


def test_written_and_read_again(rng):
    ring = rng.uniform(0, 5, (5, 2)).astype(np.float32)
    polygons = Polygons((ring, ring + 1))
    for segment in (polygons, Bitmap(MASK, (0, 0)), Bitmap(MASK[:2, :2], (2, 1))):
        again = parse(coco_masks.write_segmentation(segment, SIZE))
        np.testing.assert_array_equal(
            coco_masks.segment_mask(again, SIZE), coco_masks.segment_mask(segment, SIZE)
        )


def test_nothing():
    assert parse(None) is None and parse([]) is None
    empty = Bitmap(np.zeros(SIZE, bool), (0, 0))
    np.testing.assert_array_equal(segments.segment_box(empty), (0, 0, 0, 0))


NAN = float("nan")


@pytest.mark.parametrize(
    "value",
    [
        *("text", 3, {}, [3], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, "6"]]),
        *([[1, 2, 3, 4, 5, NAN]], [[1, 2, 3, 4, 5, 10**400]], [[1, [2, 3], 4, 5, 6, 7]]),
        {"size": [5, 4], "counts": [20]},
        *({"size": [4, 5], "counts": c} for c in (None, [], [19], [21], [-1, 21], [20.0], [True])),
        *({"size": [4, 5], "counts": c} for c in ("", "\x01", "é", "z" * 50, STRING[:-1], "P")),
        {"size": [4, 5], "counts": [10**30, 20 - 10**30]},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_faults(value):
    with pytest.raises(DataError, match=r"^f\.segmentation"):
        parse(value)


def test_an_endless_outline_is_refused():
    """Drawing takes memory by an outline's length: a small file could ask for all there is."""
    zigzag = [v for _ in range(2000) for v in (0, 0, 1e6, 1e6)]
    with pytest.raises(DataError, match="px long"):
        parse([zigzag])
