import numpy as np
import pytest

from jaxdet.data import reports
from jaxdet.data.assemble import Found, assemble
from jaxdet.data.records import Bitmap

BITMAP = Bitmap(np.ones((2, 2), bool), (1, 1))


def test_clips_and_leaves_out():
    report = reports.Report()
    objects = [
        Found("f: 0", (10, 10, 70, 20), 1, area=5.0, segment=BITMAP),
        Found("f: 1", (10, 10, 10, 20), 2),
        Found("f: 2", (-0.5, 0, 5, 5), 3, difficult=True),
        Found("f: 3", (1e300, 0, 1e301, 5), 1),
    ]
    got = assemble(7, "a.png", (40, 60), objects, report, captions=["a cat"])
    np.testing.assert_array_equal(got.boxes, [[10, 10, 60, 20], [0, 0, 5, 5]])
    assert got.labels.tolist() == [1, 3] and got.difficult.tolist() == [False, True]
    np.testing.assert_array_equal(got.areas, [5, 25])  # A box's own area where none is known.
    assert got.segments == (BITMAP, None) and got.captions == ("a cat",)
    assert report.remarks == {reports.EMPTY: ["f: 1", "f: 3"], reports.CLIPPED: ["f: 0"]}


def test_nothing_known_is_none():
    got = assemble(1, "a", (4, 6), [Found("f", (0, 0, 1, 1), 1)], reports.Report())
    assert got.areas is None and got.segments is None and got.keypoints is None
    empty = assemble(1, "a", (4, 6), [], reports.Report(), n_keypoints=3)
    assert empty.boxes.shape == (0, 4) and empty.keypoints.shape == (0, 3, 3)


@pytest.mark.parametrize(("x", "kept"), [(0, True), (59.5, True), (60, False), (-1, False)])
def test_keypoints_outside_are_not_labelled(x, kept):
    report = reports.Report()
    points = np.array([[x, 3, 2], [5, 5, 0]])
    objects = [Found("f: 0", (0, 0, 9, 9), 1, keypoints=points), Found("f: 1", (0, 0, 9, 9), 1)]
    got = assemble(1, "a", (40, 60), objects, report, n_keypoints=2).keypoints
    np.testing.assert_array_equal(got[0], [[x, 3, 2] if kept else [0, 0, 0], [0, 0, 0]])
    assert not got[1].any()
    assert report.remarks.get(reports.KEYPOINTS_OUTSIDE, []) == (
        [] if kept else ["f: 0.keypoints[0]"]
    )
