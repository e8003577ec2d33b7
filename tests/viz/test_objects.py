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


def test_poses_are_drawn_where_they_are_in_the_magnified_object():
    image = np.zeros((40, 60, 3), np.uint8)
    image[20:, 30:] = 50
    box = np.array([20.0, 10, 40, 30])  # Shown are x 14 to 46, y 4 to 36, each pixel 5 times.
    points = np.array([[30.0, 20, 2], [20, 30, 1]])
    drawn = objects.draw_poses(image, box, {"truth": points, "stage 1": points[:1]}, side=160)
    first, second = drawn[28:188, 4:164], drawn[28:188, 168:328]
    assert drawn.shape == (24 + 160 + 8, 2 * 160 + 3 * 4, 3)
    np.testing.assert_array_equal(first[80, 80], class_color(1))
    np.testing.assert_array_equal(first[130, 30], objects.PAPER)
    assert not second[130, 30].any()
    # The corner between dark and grey is in the middle, beyond the dot.
    for square in (first, second):
        assert (square[95:155, 95:155] == 50).all() and not square[5:65, 5:65].any()
