import numpy as np
import pytest

from jaxdet.data import segments
from jaxdet.data.records import Bitmap, Polygons, StoredBitmap

SQUARE = Polygons((np.array([[2, 1], [6, 1], [6, 5], [2, 5]], np.float32),))


def blob(rng, *, center=(120.0, 90.0), radius=60.0, corners=9):
    """A star-shaped outline."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    lengths = radius * rng.uniform(0.5, 1.0, corners)
    ring = np.stack([np.cos(angles), np.sin(angles)], -1) * lengths[:, None] + center
    return Polygons((ring.astype(np.float32),))


def is_inside(ring, x, y):
    """Oracle: how often a ray to the right crosses the outline."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            crossings += 1
    return crossings % 2 == 1


def share_inside(ring, n, step):
    """Oracle: the share of each cell that is inside, from `step` x `step` points a cell."""
    at = (np.arange(n * step) + 0.5) / step
    points = np.array([[is_inside(ring, x, y) for x in at] for y in at], float)
    return points.reshape(n, step, n, step).mean(axis=(1, 3))


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def as_bitmap(segment, size=(180, 240)):
    box = segments.segment_box(segment)
    return segments.bitmap_of(segments.draw_segment(segment, box, size))


def test_square_by_hand():
    want = np.zeros((8, 10), bool)
    want[1:5, 2:6] = True
    box = segments.segment_box(SQUARE)
    np.testing.assert_array_equal(box, [2, 1, 6, 5])
    np.testing.assert_array_equal(segments.draw_segment(SQUARE, box, (8, 10)), want)
    framed = segments.frame_mask(SQUARE, np.array([0, 0, 8, 8], np.float32), 4)
    np.testing.assert_array_equal(framed, want[:8, :8].reshape(4, 2, 4, 2).mean(axis=(1, 3)) >= 0.5)
    assert segments.frame_mask(SQUARE, box, 5).all()


def test_cells_are_those_that_are_mostly_inside(rng):
    for _ in range(3):
        (ring,) = blob(rng, center=(6.0, 6.0), radius=6.0).rings
        share = share_inside(ring, 12, segments.FINE)
        got = segments.frame_mask(Polygons((ring,)), np.array([0, 0, 12, 12], np.float32), 12)
        np.testing.assert_array_equal(got, share >= 0.5)


def test_parts_are_united():
    """Where two rings overlap the object is, too."""
    both = Polygons((*SQUARE.rings, SQUARE.rings[0] + np.float32(2)))
    drawn = segments.draw_segment(both, segments.segment_box(both), (10, 10))
    assert drawn.sum() == 16 + 16 - 4 and drawn[3, 4]


@pytest.mark.parametrize("stored", [False, True])
def test_bitmap_in_a_frame(stored):
    mask = np.array([[1, 0], [1, 1]], bool)
    segment = Bitmap(mask, (5, 3))
    if stored:
        segment = StoredBitmap(lambda: mask, (5, 3))
    np.testing.assert_array_equal(segments.segment_box(segment), [5, 3, 7, 5])
    framed = segments.frame_mask(segment, np.array([5, 3, 7, 5], np.float32), 4)
    np.testing.assert_array_equal(framed, mask.repeat(2, 0).repeat(2, 1))
    half = segments.frame_mask(segment, np.array([4, 3, 6, 5], np.float32), 4)
    np.testing.assert_array_equal(half, np.tile(np.array([0, 0, 1, 1], bool), (4, 1)))


def test_outlines_and_bitmaps_agree_in_frames(rng):
    for _ in range(10):
        segment = blob(rng)
        box = segments.segment_box(segment) + np.array([-2, 1, 3, -1], np.float32)
        one, two = (segments.frame_mask(s, box, 28) for s in (segment, as_bitmap(segment)))
        assert iou(one, two) > 0.9


def test_whole_pixels_are_moved_exactly(rng):
    mask = rng.uniform(size=(7, 9)) < 0.5
    segment = Bitmap(mask, (4, 6))
    shifted = segments.move_segment(segment, np.array([[1.0, 0, 3], [0, 1, -2]]), (40, 40))
    assert shifted.corner == (7, 4)
    np.testing.assert_array_equal(shifted.mask, mask)
    mirrored = segments.move_segment(segment, np.array([[-1.0, 0, 40], [0, 1, 0]]), (40, 40))
    assert mirrored.corner == (40 - 4 - 9, 6)
    np.testing.assert_array_equal(mirrored.mask, mask[:, ::-1])
    doubled = segments.move_segment(segment, np.array([[2.0, 0, 0], [0, 2, 0]]), (40, 40))
    np.testing.assert_array_equal(doubled.mask, mask.repeat(2, 0).repeat(2, 1))


def test_bitmaps_end_with_the_view():
    segment = Bitmap(np.ones((10, 10), bool), (0, 0))
    cut = segments.move_segment(segment, np.array([[1.0, 0, -4], [0, 1, 0]]), (8, 20))
    assert cut.corner == (0, 0) and cut.mask.shape == (8, 6) and cut.mask.all()
    gone = segments.move_segment(segment, np.array([[1.0, 0, -40], [0, 1, 0]]), (8, 20))
    assert not gone.mask.any()
    again = segments.move_segment(gone, np.array([[1.0, 0, 0], [0, 1, 0]]), (8, 20))
    np.testing.assert_array_equal(segments.segment_box(again), np.zeros(4))
    assert not segments.draw_segment(gone, np.array([0, 0, 8, 8], np.float32), (8, 20)).any()
    assert not segments.frame_mask(gone, np.array([0, 0, 8, 8], np.float32), 7).any()


def test_outlines_and_bitmaps_move_alike(rng):
    """Turned, stretched and shifted, as polygons and as pixels."""
    for _ in range(10):
        matrix = np.array([[1.2, 0.4, -5], [-0.3, 1.1, 40]]) + rng.normal(0, 0.1, (2, 3))
        segment = blob(rng)
        moved = [
            segments.move_segment(s, matrix, (240, 300)) for s in (segment, as_bitmap(segment))
        ]
        one, two = (
            segments.draw_segment(m, np.array([0, 0, 300, 240], np.float32), (240, 300))
            for m in moved
        )
        assert one.sum() > 1000 and iou(one, two) > 0.97
        for a, b in zip(np.nonzero(one), np.nonzero(two), strict=True):
            assert abs(a.mean() - b.mean()) < 0.3  # No shift by half a pixel.


def test_outlines_end_with_the_view():
    triangle = Polygons((np.array([[-5, 5], [15, -5], [15, 15]], np.float32),))
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    cut = segments.move_segment(triangle, identity, (10, 10))
    np.testing.assert_allclose(segments.segment_box(cut), [0, 0, 10, 10])
    view = np.array([0, 0, 10, 10], np.float32)
    np.testing.assert_array_equal(
        segments.draw_segment(cut, view, (10, 10)), segments.draw_segment(triangle, view, (10, 10))
    )
    # The left corner alone: where the sides cross x = 3 is by hand.
    corner = segments.move_segment(triangle, np.array([[1.0, 0, 0], [0, 1, 0]]), (10, 3))
    np.testing.assert_allclose(segments.segment_box(corner), [0, 1, 3, 9])
    gone = segments.move_segment(triangle, np.array([[1.0, 0, 40], [0, 1, 0]]), (10, 10))
    assert gone.rings == ()
    np.testing.assert_array_equal(segments.segment_box(gone), np.zeros(4))
    assert not segments.frame_mask(gone, view, 7).any()


def test_clipped_outlines_draw_alike(rng):
    for _ in range(10):
        segment, shift = blob(rng), rng.integers(-80, 80, 2)
        matrix = np.array([[1.0, 0, shift[0]], [0, 1, shift[1]]])
        moved, whole = (
            segments.move_segment(segment, matrix, (100, 120)),
            Polygons(tuple(ring + shift.astype(np.float32) for ring in segment.rings)),
        )
        view = np.array([0, 0, 120, 100], np.float32)
        one, two = (segments.draw_segment(s, view, (100, 120)) for s in (moved, whole))
        assert (one != two).sum() <= 2


def test_draws_inside_the_box_only():
    drawn = segments.draw_segment(SQUARE, np.array([0, 0, 4, 3], np.float32), (8, 10))
    assert drawn.sum() == 2 * 2 and drawn[1:3, 2:4].all()
    outside = np.array([-5, 0, 0, 3], np.float32)
    assert not segments.draw_segment(SQUARE, outside, (8, 10)).any()


def test_shift_and_bitmap_of(rng):
    mask = np.zeros((20, 30), bool)
    mask[4:9, 7:19] = rng.uniform(size=(5, 12)) < 0.7
    mask[[4, 8], [7, 18]] = True
    bitmap = segments.bitmap_of(mask)
    assert bitmap.corner == (7, 4) and bitmap.mask.shape == (5, 12)
    whole = np.array([0, 0, 30, 20], np.float32)
    np.testing.assert_array_equal(segments.draw_segment(bitmap, whole, (20, 30)), mask)
    moved = segments.shift(bitmap, 3, -2)
    drawn = segments.draw_segment(moved, whole, (20, 30))
    np.testing.assert_array_equal(drawn[:-2, 3:], mask[2:, :-3])
    np.testing.assert_array_equal(
        segments.segment_box(segments.shift(SQUARE, 3, -2)), [5, -1, 9, 3]
    )


def test_far_corners_do_not_overflow():
    """A sliver of a huge object still in view."""
    huge = Polygons((np.array([[-1e6, -1e6], [1e6, -1e6], [1e6, 1e6], [-1e6, 1e6]], np.float32),))
    assert segments.frame_mask(huge, np.array([3, 3, 3.01, 9], np.float32), 28).all()
