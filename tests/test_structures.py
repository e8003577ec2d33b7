import numpy as np

from jaxdet.structures import Instances


def test_rows_are_objects_regions_or_padding():
    """By hand: an object, a crowd, a difficult one, a crowd that is difficult, and padding."""
    valid = np.array([[1, 1, 1, 1, 0, 0, 0]], bool)
    crowd = np.array([[0, 1, 0, 1, 0, 1, 0]], bool)
    difficult = np.array([[0, 0, 1, 1, 0, 0, 1]], bool)
    boxes, labels = np.zeros((1, 7, 4), np.float32), np.zeros((1, 7), np.int32)
    truth = Instances(boxes, labels, valid, crowd, difficult)
    np.testing.assert_array_equal(truth.objects, [[1, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(truth.regions, [[0, 1, 1, 1, 0, 0, 0]])
