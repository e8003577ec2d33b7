import numpy as np
import pytest

from jaxdet.data import compose, segments
from jaxdet.data.records import Annotation, Bitmap, Polygons
from jaxdet.data.transforms import FILL


def flat_picture(value, size, boxes=(), **fields):
    n = len(boxes)
    nothing = np.zeros(n, bool)
    fields = {
        "labels": np.full(n, value, np.int32),
        "crowd": nothing,
        "difficult": nothing,
    } | fields
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return (
        np.full((*size, 3), 20 * value, np.uint8),
        Annotation(value, f"{value}", size, boxes, **fields),
    )


def rectangle(x1, y1, x2, y2):
    return Polygons((np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32),))


def visible(picture, i, size):
    """The pixels of object i by its segment."""
    annotation = picture[1]
    return segments.draw_segment(annotation.segments[i], annotation.boxes[i], size)


def test_mosaic_by_hand():
    tiles = compose.tile_sizes((10, 12), (30, 40))
    assert tiles == [(10, 12), (10, 28), (20, 12), (20, 28)]
    pictures = [
        flat_picture(1, (8, 12), [(0, 0, 4, 4)], segments=(rectangle(0, 0, 4, 4),)),
        flat_picture(2, (10, 20), [(1, 1, 5, 6)], difficult=np.array([True])),
        flat_picture(3, (5, 6), [(0, 0, 6, 5)], keypoints=np.float32([[[1, 2, 2], [0, 0, 0]]])),
        flat_picture(
            4, (20, 28), [(2, 3, 9, 9)], segments=(Bitmap(np.ones((6, 7), bool), (2, 3)),)
        ),
    ]
    pixels, known = compose.mosaic(pictures, (10, 12), (30, 40))
    want = np.full((30, 40, 3), FILL, np.uint8)
    want[2:10, 0:12], want[0:10, 12:32] = 20, 40
    want[10:15, 6:12], want[10:30, 12:40] = 60, 80
    np.testing.assert_array_equal(pixels, want)
    assert known.size == (30, 40) and known.image_id == 1 and known.labels.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(
        known.boxes, [[0, 2, 4, 6], [13, 1, 17, 6], [6, 10, 12, 15], [14, 13, 21, 19]]
    )
    assert known.difficult.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(known.segments[0].rings[0], rectangle(0, 2, 4, 6).rings[0])
    assert known.segments[1:3] == (None, None) and known.segments[3].corner == (14, 13)
    np.testing.assert_array_equal(known.keypoints[2], [[7, 12, 2], [0, 0, 0]])
    assert not known.keypoints[[0, 1, 3]].any()


class All(np.random.Generator):
    """Chooses every object."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.zeros(size)


ALL = All(np.random.PCG64())


def test_paste_by_hand():
    """A square pasted over the right half of one object, all of a second, beside a third."""
    boxes = [(2, 2, 12, 12), (8, 3, 11, 6), (20, 20, 28, 28), (0, 0, 40, 30)]
    keypoints = np.zeros((4, 2, 3), np.float32)
    keypoints[0] = [[8, 5, 2], [3, 3, 2]]
    crowd = np.array([False, False, False, True])
    base = flat_picture(
        1,
        (30, 40),
        boxes,
        segments=tuple(rectangle(*box) for box in boxes),
        keypoints=keypoints,
        crowd=crowd,
    )
    donor = flat_picture(
        5, (20, 30), [(7, 0, 14, 14)], segments=(Bitmap(np.ones((14, 7), bool), (7, 0)),)
    )
    before = base[0].copy()
    pixels, known = compose.copy_paste(ALL, base, donor)
    np.testing.assert_array_equal(base[0], before)  # It may be a cached one.
    assert (pixels[:14, 7:14] == 100).all() and (pixels == 100).all(axis=2).sum() == 14 * 7
    assert known.size == (30, 40) and known.labels.tolist() == [1, 1, 1, 5]
    np.testing.assert_array_equal(
        known.boxes, [[2, 2, 7, 12], [20, 20, 28, 28], [0, 0, 40, 30], [7, 0, 14, 14]]
    )
    assert known.crowd.tolist() == [False, False, True, False] and not known.difficult.any()
    assert visible((pixels, known), 0, (30, 40)).sum() == 5 * 10
    assert isinstance(known.segments[1], Polygons)  # What is not touched stays as it was.
    assert visible((pixels, known), 2, (30, 40)).sum() == 30 * 40 - 14 * 7
    np.testing.assert_array_equal(known.keypoints[0], [[8, 5, 1], [3, 3, 2]])
    assert not known.keypoints[3].any()


@pytest.mark.parametrize("has_segment", [True, False])
def test_hardly_visible_objects_are_difficult(has_segment):
    boxes = [(0, 0, 10, 10), (0, 0, 10, 10)]
    base = flat_picture(
        1,
        (20, 20),
        boxes,
        crowd=np.array([False, True]),
        segments=tuple(rectangle(*box) for box in boxes) if has_segment else None,
    )
    donor = flat_picture(2, (20, 20), [(2, 0, 10, 10)], segments=(rectangle(2, 0, 10, 10),))
    _, known = compose.copy_paste(ALL, base, donor)
    assert known.difficult.tolist() == [True, False, False]
    want = [0, 0, 2, 10] if has_segment else boxes[0]
    np.testing.assert_array_equal(known.boxes[0], want)
    donor = flat_picture(2, (20, 20), [(0, 0, 10, 10)], segments=(rectangle(0, 0, 10, 10),))
    _, known = compose.copy_paste(ALL, base, donor)
    assert known.labels.tolist() == [2]


def test_what_cannot_be_pasted_stays_out():
    base = flat_picture(1, (20, 20), [(0, 0, 10, 10)])
    outline = rectangle(3, 3, 9, 9)
    for fields in (
        {"segments": None},
        {"segments": (None,)},
        {"segments": (outline,), "crowd": np.array([True])},
        {"segments": (Bitmap(np.zeros((0, 0), bool), (0, 0)),)},
    ):
        donor = flat_picture(2, (20, 20), [(3, 3, 9, 9)], **fields)
        assert compose.copy_paste(ALL, base, donor) is base
    assert compose.copy_paste(ALL, base, flat_picture(2, (20, 20))) is base


def test_half_of_the_objects_are_pasted(rng):
    boxes = [(x, 0, x + 2, 2) for x in range(0, 40, 4)]
    donor = flat_picture(2, (20, 40), boxes, segments=tuple(rectangle(*box) for box in boxes))
    base = flat_picture(1, (20, 40))
    counts = [len(compose.copy_paste(rng, base, donor)[1].labels) for _ in range(60)]
    assert 4.2 < np.mean(counts) < 5.8 and len(set(counts)) > 4
