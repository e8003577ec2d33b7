import dataclasses
import pickle

import numpy as np
import pytest

from jaxdet.data import object_pictures
from jaxdet.data.assemble import Found, assemble
from jaxdet.data.records import Source
from jaxdet.data.reports import Report


def picture(index):
    """40 x 60; the value of a pixel is its place."""
    places = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60)
    return np.stack([places % 251, places // 251, np.full_like(places, index)], -1).astype(np.uint8)


def source_of(*rows):
    """Of pictures with objects (box, label, crowd, difficult)."""
    annotations = tuple(
        assemble(
            10 * (i + 1),
            f"{i}.png",
            (40, 60),
            [Found("", box, label, crowd, hard) for box, label, crowd, hard in objects_],
            Report(),
        )
        for i, objects_ in enumerate(rows)
    )
    return Source("test", ("cat", "dog"), annotations, picture, category_ids=(3, 7))


A = ((10.0, 5.0, 30.0, 25.0), 1, False, False)
B = ((40.4, 20.0, 60.0, 40.0), 2, False, False)
CROWD = ((0.0, 0.0, 20.0, 20.0), 1, True, False)
HARD = ((0.0, 0.0, 20.0, 20.0), 2, False, True)
SMALL = ((0.0, 0.0, 20.0, 5.0), 2, False, False)
SOURCE = source_of([A, B], [A], [], [A, CROWD], [HARD], [B, SMALL])


def test_pictures_with_a_count_of_objects():
    single = object_pictures.with_count(SOURCE, 1)
    assert [a.image_id for a in single.annotations] == [20]
    assert single[0][0][0, 0, 2] == 1 and single.category_ids == (3, 7)
    assert "With 1 object: 1 of 6 pictures." in single.notes
    assert [a.image_id for a in object_pictures.with_count(SOURCE, 2).annotations] == [10, 60]
    with pytest.raises(ValueError, match="exactly 3 objects"):
        object_pictures.with_count(SOURCE, 3)


def with_keypoints(annotation, *visible):
    """Two joints an object, of these visibilities."""
    points = np.array([[[1, 2, a], [3, 4, b]] for a, b in visible], np.float32).reshape(-1, 2, 3)
    return annotation._replace(keypoints=points)


def test_pictures_with_a_labelled_joint():
    a = SOURCE.annotations
    annotations = (
        a[2],  # Without keypoints.
        with_keypoints(a[0], (0, 0), (0, 1)),  # One of the second object.
        with_keypoints(a[1], (0, 0)),
        with_keypoints(a[2]),  # Without objects.
        with_keypoints(a[3], (0, 0), (2, 2)),  # Of a crowd.
        with_keypoints(a[4], (2, 2)),  # Of a difficult object.
        with_keypoints(a[5], (2, 0), (0, 0)),
    )
    source = dataclasses.replace(SOURCE, annotations=annotations)
    found, kept = object_pictures.with_joints(source)
    assert kept == [1, 6] and found.name == source.name
    assert [x.image_id for x in found.annotations] == [10, 60]
    with pytest.raises(ValueError, match="test: holds no picture with a labelled keypoint"):
        object_pictures.with_joints(SOURCE)


def test_crops_are_the_pixels_of_the_objects():
    cut = object_pictures.crops(SOURCE)
    # Neither the crowd, nor the difficult one, nor the one of 5 px.
    assert [a.labels.tolist() for a in cut.annotations] == [[1], [2], [1], [1], [2]]
    for index, (number, (y1, x1, y2, x2)) in enumerate(
        [(0, (5, 10, 25, 30)), (0, (20, 40, 40, 60)), (1, (5, 10, 25, 30))]
    ):
        pixels, annotation = cut[index]
        np.testing.assert_array_equal(pixels, picture(number)[y1:y2, x1:x2])
        np.testing.assert_array_equal(annotation.boxes, [[0, 0, x2 - x1, y2 - y1]])
        assert pixels.base is None, "a view keeps the whole picture in memory"
    assert [a.image_id for a in cut.annotations] == [1, 2, 3, 4, 5]
    assert cut.annotations[1].name == "0.png, object 2"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cut))[0][0], cut[0][0])


def test_context_ends_at_the_border():
    cut = object_pictures.crops(SOURCE, context=0.5)
    # A has 20 x 20: ten pixels on each side, of which five are above the picture.
    np.testing.assert_array_equal(cut[0][0], picture(0)[0:35, 0:40])
    np.testing.assert_array_equal(cut[1][0], picture(0)[10:40, 30:60])


@pytest.mark.parametrize("wrong", [{"context": -0.1}, {"min_side": 0.5}], ids=str)
def test_rejects(wrong):
    with pytest.raises(ValueError, match=str(*wrong.values())):
        object_pictures.crops(SOURCE, **wrong)
    with pytest.raises(ValueError, match="no object"):
        object_pictures.crops(source_of([], [CROWD]))
