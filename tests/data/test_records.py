import numpy as np
import pytest

from jaxdet.data import records


def test_inside_by_hand():
    boxes = np.array(
        [
            [1, 2, 3, 4],
            [-0.5, 0, 61, 40],  # Within a pixel: rounding, not worth a note.
            [-5, 0, 10, 10],
            [70, 0, 80, 10],  # Outside.
            [9, 9, 5, 5],  # Turned round.
        ],
        np.float32,
    )
    clipped, solid, moved = records.inside(boxes, (40, 60))
    np.testing.assert_array_equal(clipped[:3], [[1, 2, 3, 4], [0, 0, 60, 40], [0, 0, 10, 10]])
    assert solid.tolist() == [True, True, True, False, False]
    assert moved.tolist() == [False, False, True, False, False]


def test_inside_of_nothing():
    clipped, solid, moved = records.inside(np.zeros((0, 4), np.float32), (4, 6))
    assert clipped.shape == (0, 4) and solid.shape == moved.shape == (0,)


def test_category_ids_one_a_class():
    with pytest.raises(ValueError, match="one category id a class"):
        records.Source("x", ("a", "b"), (), read=lambda i: np.zeros((1, 1, 3)), category_ids=(1,))


@pytest.mark.parametrize("size", [(1, 1), (40, 60), (10_000, 10_000)])
def test_sizes_of_pictures(size):
    assert records.check_size(size, "f") == size


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (10_000, 10_001), (10**30, 1)])
def test_sizes_of_none(size):
    with pytest.raises(records.DataError, match=rf"^f: height {size[0]} and width {size[1]} must"):
        records.check_size(size, "f")


def test_a_stored_bitmap_is_read_each_time():
    calls = []
    stored = records.StoredBitmap(lambda: calls.append(1) or np.ones((2, 3), bool), (4, 5))
    assert stored.mask.shape == (2, 3) and stored.mask.all()
    assert len(calls) == 2 and stored.corner == (4, 5)
