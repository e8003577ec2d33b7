import numpy as np

from jaxdet.viz import objects
from jaxdet.viz.draw import class_color


def test_masks_are_mixed_in():
    image = np.full((8, 9, 3), 100, np.uint8)
    mask = np.zeros((8, 9), bool)
    mask[1:6, 1:6] = True
    drawn = objects.draw_masks(image, [mask, None], np.array([2, 1]))
    assert (image == 100).all()  # The picture given stays as it is.
    assert (drawn[~mask] == 100).all()
    color = np.array(class_color(2))
    inner = (1 - objects.OPACITY) * 100 + objects.OPACITY * color
    np.testing.assert_allclose(drawn[3, 3], inner, atol=1)
    np.testing.assert_array_equal(drawn[1, 3], color)  # The outline.


def test_keypoints_are_dots_where_labelled():
    image = np.zeros((40, 60, 3), np.uint8)
    points = np.array([[[10, 10, 2], [30, 20, 1], [50, 30, 0]]], float)
    drawn = objects.draw_keypoints(image, points)
    np.testing.assert_array_equal(drawn[10, 10], class_color(1))
    np.testing.assert_array_equal(drawn[20, 30], objects.PAPER)
    assert not drawn[30, 50].any()
