import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.geometry import iou as iou_ops
from jaxdet.targets import window_sampling

OPTIONS = {"n": 40, "object_sides": (0.5, 1.0), "window_sides": (20.0, 50.0)}
BOXES = jnp.array([[4.0, 4, 24, 24], [30, 34, 56, 60], [0, 0, 64, 64]])
SIZE = jnp.array([64, 64])
sample = jax.jit(functools.partial(window_sampling.sample_windows, **OPTIONS))


def sides_of(windows):
    sides = np.array(windows[:, 2:] - windows[:, :2])
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], rtol=1e-4)
    return sides[:, 0]


def assert_anywhere(windows):
    centers = np.array(windows[:, :2] + windows[:, 2:]) / 2
    assert centers.min() >= 0 and centers.max() <= 64 and (np.ptp(centers, axis=0) > 40).all()
    sides = sides_of(windows)
    assert sides.min() >= 20 - 1e-3 and sides.max() <= 50 + 1e-3 and np.ptp(sides) > 10


def test_windows_are_around_objects_and_anywhere():
    windows = sample(jax.random.key(0), BOXES, jnp.array([True, True, False]), SIZE)
    assert_anywhere(windows[20:])
    # The objects have 20 and 26 px, half to all of their windows' sides, and more than a third of
    # their area is in view. The third row is none.
    inside = np.array(iou_ops.pairwise_intersection_over_first(BOXES[:2], windows[:20]))
    assert (inside.max(axis=0) > 0.3).all() and (inside.argmax(axis=0) == 0).any()
    sides = sides_of(windows[:20])
    assert sides.min() >= 20 - 1e-3 and sides.max() <= 52 + 1e-3


def test_without_objects_all_are_anywhere():
    assert_anywhere(sample(jax.random.key(0), BOXES, jnp.zeros(3, bool), SIZE))


def test_pictures_without_pixels_give_finite_windows():
    windows = sample(jax.random.key(0), BOXES, jnp.zeros(3, bool), jnp.array([0, 0]))
    assert np.isfinite(windows).all()
