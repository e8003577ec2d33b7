import pathlib

import numpy as np
import pytest

from jaxdet.data.resize import ShortSide, bilinear

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "resize.npz")


@pytest.mark.parametrize(
    "size, resized, canvas",
    [
        ((480, 640), (800, 1066), (800, 1088)),
        ((640, 480), (1066, 800), (1088, 800)),
        ((427, 640), (800, 1199), (800, 1216)),
        ((100, 400), (333, 1333), (352, 1344)),
        ((800, 1333), (800, 1333), (800, 1344)),
        ((1600, 1600), (800, 800), (800, 800)),
        ((1, 2000), (1, 1333), (32, 1344)),
    ],
)
def test_sizes_of_the_peer(size, resized, canvas):
    rule = ShortSide()
    assert rule.size(size) == resized
    assert rule.canvas(size) == canvas


@pytest.mark.parametrize("fields", [(0, 10, 32), (20, 10, 32), (10, 20, 0)])
def test_rules_that_make_no_sense(fields):
    with pytest.raises(ValueError, match="Got ShortSide"):
        ShortSide(*fields)


@pytest.mark.parametrize("number", range(4))
def test_pixels_of_torch(number):
    image, want = GOLDEN[f"image/{number}"], GOLDEN[f"resized/{number}"]
    got = bilinear(image, want.shape[:2])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_by_hand():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 100
    np.testing.assert_allclose(bilinear(image, (2, 4))[:, :, 0], [[0, 25, 75, 100]] * 2)
    # No mean over what is between: every fourth pixel's neighbours only.
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None], (4, 16, 3))
    np.testing.assert_allclose(bilinear(ramp, (4, 4))[0, :, 0], [1.5, 5.5, 9.5, 13.5])


def test_the_same_size_changes_nothing(rng):
    image = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(bilinear(image, (5, 7)), image)
