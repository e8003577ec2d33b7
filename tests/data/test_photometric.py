import colorsys

import numpy as np
import pytest

from jaxdet.data import photometric


class Highest(np.random.Generator):
    """Draws the upper end of every range."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(() if size is None else size, high)


class Drawn(np.random.Generator):
    """Draws what it was given."""

    def __init__(self, values):
        super().__init__(np.random.PCG64())
        self.values = np.array(values, float)

    def uniform(self, low=0.0, high=1.0, size=None):
        assert size == len(self.values) and (low, high) == (0.0, 1.0)
        return self.values


def in_hsv(image, change):
    """Oracle: each pixel to (hue in degrees, saturation, value 0 to 1), changed, and back."""
    flat = []
    for pixel in image.reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        h, s, v = change(360 * h, s, v)
        flat.append(colorsys.hsv_to_rgb(h % 360 / 360, min(s, 1), min(v, 1)))
    return 255 * np.array(flat).reshape(image.shape)


def colors(rng):
    """No near-greys, whose hue 8 bits do not tell, nor hues near the end of their circle."""
    h, s, v = rng.uniform(0.05, 0.9, 40), rng.uniform(0.35, 0.7, 40), rng.uniform(0.5, 0.8, 40)
    rgb = [colorsys.hsv_to_rgb(*pixel) for pixel in zip(h, s, v, strict=True)]
    return np.round(255 * np.array(rgb)).astype(np.uint8).reshape(5, 8, 3)


def test_color_jitter_by_hand():
    """Each option alone, all draws at their upper end."""
    image = np.array([[[100, 50, 0], [60, 60, 60]]], np.uint8)

    def jitter(**options):
        return photometric.color_jitter(Highest(np.random.PCG64()), image, **options).astype(float)

    grey = np.array(image, float) @ photometric.LUMA
    np.testing.assert_allclose(jitter(brightness=0.5), image * 1.5, atol=0.51)
    want = np.clip(image + 0.5 * (image - grey[..., None]), 0, 255)
    np.testing.assert_allclose(jitter(saturation=0.5), want, atol=0.51)
    want = np.clip(image + 0.5 * (image - grey.mean()), 0, 255)
    np.testing.assert_allclose(jitter(contrast=0.5), want, atol=0.51)
    np.testing.assert_allclose(jitter(hue=120.0), image[..., [2, 0, 1]], atol=0.51)


def test_color_jitter_keeps_greys_grey(rng):
    image = np.tile(rng.integers(0, 256, (9, 9, 1)), (1, 1, 3)).astype(np.uint8)
    got = photometric.color_jitter(rng, image, saturation=0.9, hue=180.0)
    np.testing.assert_allclose(got.astype(int), image.astype(int), atol=1)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"hue": 0.05}, lambda h, s, v: (1.05 * h, s, v)),
        ({"saturation": 0.3}, lambda h, s, v: (h, 1.3 * s, v)),
        ({"value": 0.25}, lambda h, s, v: (h, s, 1.25 * v)),
    ],
    ids=["hue", "saturation", "value"],
)
def test_hsv_jitter_by_hand(rng, options, change):
    """OpenCV keeps hue in steps of 2 degrees: up to 5 of 255 in a channel."""
    image = colors(rng)
    amounts = {"hue": 0.0, "saturation": 0.0, "value": 0.0} | options
    got = photometric.hsv_jitter(Highest(np.random.PCG64()), image, **amounts).astype(float)
    error = np.abs(got - in_hsv(image, change))
    assert error.max() < 7 and error.mean() < 2
    assert np.abs(got - image).mean() > 3 * error.mean()


def test_hsv_jitter_of_nothing(rng):
    image = colors(rng)
    assert photometric.hsv_jitter(rng, image, hue=0.0, saturation=0.0, value=0.0) is image


YES, NO = 0.0, 0.9  # Below and above a probability of one half.


@pytest.mark.parametrize("last", [0.2, 0.8])
def test_distortions_by_hand(rng, last):
    """Each alone, by three quarters of the way to its upper end."""
    image, up = colors(rng), [0.875] * 4

    def distort(*made):
        got = photometric.distort(Drawn([last, *made, *up]), image, probability=0.5)
        return got.astype(float)

    np.testing.assert_allclose(
        distort(YES, NO, NO, NO), np.clip(image.astype(float) + 24, 0, 255), atol=0.51
    )
    np.testing.assert_allclose(distort(NO, YES, NO, NO), np.clip(image * 1.375, 0, 255), atol=0.51)
    for got, change in (
        (distort(NO, NO, YES, NO), lambda h, s, v: (h, 1.375 * s, v)),
        (distort(NO, NO, NO, YES), lambda h, s, v: (h + 13.5, s, v)),
    ):
        assert np.abs(got - in_hsv(image, change)).mean() < 2.5
    np.testing.assert_array_equal(distort(NO, NO, NO, NO), image)


def test_contrast_is_second_or_last(rng):
    """First brighter then more contrast is not the same as the other way round with colours."""
    image = colors(rng)
    first, last = (
        photometric.distort(Drawn([at, YES, YES, YES, NO, *[0.9] * 4]), image).astype(float)
        for at in (0.2, 0.8)
    )
    brighter = np.clip(image + 25.6, 0, 255)
    want = np.clip(in_hsv(np.clip(1.4 * brighter, 0, 255), lambda h, s, v: (h, 1.4 * s, v)), 0, 255)
    assert np.abs(first - want).mean() < 2.5
    want = np.clip(1.4 * in_hsv(brighter, lambda h, s, v: (h, 1.4 * s, v)), 0, 255)
    assert np.abs(last - want).mean() < 2.5
    assert np.abs(first - last).mean() > 4


def test_distort_makes_each_as_often_as_asked(rng):
    image = colors(rng)
    assert photometric.distort(rng, image, probability=0.0) is image
    changed = [
        not np.array_equal(photometric.distort(rng, image, probability=0.25), image)
        for _ in range(400)
    ]
    assert abs(np.mean(changed) - (1 - 0.75**4)) < 0.09
