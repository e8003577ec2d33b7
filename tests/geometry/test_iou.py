import itertools
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.geometry import iou as iou_ops

# Made by tests/golden/make_boxes.py: 54 pairs of sets.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/boxes.npz")
NAMES = ("iou", "giou", "diou", "ciou")

# A line, a point at 0 as in padded rows, and corners in the wrong order (one side, both sides).
DEGENERATE = jnp.array(
    [[3.0, 4, 3, 9], [0, 0, 0, 0], [8, 2, 5, 9], [9, 9, 2, 2]], dtype=jnp.float32
)


def random_boxes(rng, n):
    low, side = rng.uniform(0, 90, (n, 2)), rng.uniform(5, 50, (n, 2))
    return jnp.asarray(np.hstack([low, low + side]), jnp.float32)


def pixel_masks(boxes):
    """Oracle: the pixels that boxes with whole corners cover, one mask each."""
    masks = np.zeros((len(boxes), 24, 24), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def whole_boxes(rng, n):
    corners = rng.integers(0, 24, (n, 2, 2))
    return np.hstack([corners.min(1), corners.max(1)])


def test_iou_by_hand(compiled):
    a = jnp.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    b = jnp.array([[5.0, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10]])
    want = [[50 / 150, 0, 1], [0, 0, 0]]  # The second touches without sharing a pixel.
    np.testing.assert_allclose(compiled(iou_ops.pairwise_iou)(a, b), want, rtol=1e-6)


def test_iou_counts_pixels(rng):
    a, b = whole_boxes(rng, 12), whole_boxes(rng, 9)
    ma, mb = pixel_masks(a)[:, None], pixel_masks(b)[None]
    want = (ma & mb).sum((2, 3)) / np.maximum((ma | mb).sum((2, 3)), 1)
    got = jax.jit(iou_ops.pairwise_iou)(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert (want > 0).mean() > 0.3


def test_intersection_over_first_counts_pixels(rng):
    a, b = whole_boxes(rng, 12), whole_boxes(rng, 9)
    ma, mb = pixel_masks(a)[:, None], pixel_masks(b)[None]
    want = (ma & mb).sum((2, 3)) / np.maximum(ma.sum((2, 3)), 1)
    got = jax.jit(iou_ops.pairwise_intersection_over_first)(
        jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_iou_ignores_shift_scale_and_order(rng):
    a, b = random_boxes(rng, 6), random_boxes(rng, 6)
    iou = jax.jit(iou_ops.pairwise_iou)
    np.testing.assert_allclose(iou(b, a).T, iou(a, b), rtol=1e-6)
    np.testing.assert_allclose(iou(4 * a + 32, 4 * b + 32), iou(a, b), atol=1e-5)


def test_empty_set_has_no_overlaps():
    none = jnp.zeros((0, 4))
    assert iou_ops.pairwise_iou(none, DEGENERATE).shape == (0, 4)


@pytest.mark.parametrize(
    "overlap", [iou_ops.pairwise_iou, iou_ops.pairwise_intersection_over_first]
)
def test_degenerate_boxes_overlap_nothing(overlap, rng):
    other = jnp.concatenate([DEGENERATE, random_boxes(rng, 2), jnp.array([[0.0, 0, 50, 50]])])
    total = jax.jit(jax.value_and_grad(lambda a, b: overlap(a, b).sum(), (0, 1)))
    value, grads = total(DEGENERATE, other)
    assert value == 0  # A sum of numbers >= 0.
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", [*NAMES, "intersection_over_first"])
def test_extreme_boxes_are_finite(name):
    corners = [0.0, 1e-38, 1e-20, 1e-8, 1.0, 1e4, 1e9, 1e20, 3e38, np.inf, -np.inf, -1e30]
    boxes = jnp.asarray(list(itertools.product(corners[::2], corners[1::2], repeat=2)), jnp.float32)
    boxes = boxes[::17]
    overlap = getattr(iou_ops, f"pairwise_{name}")
    value, pull = jax.vjp(jax.jit(overlap), boxes, boxes)
    assert np.isfinite(value).all() and np.abs(value).max() <= 2
    assert all(np.isfinite(grad).all() for grad in pull(jnp.ones_like(value)))


@pytest.mark.parametrize("name", [*NAMES, "intersection_over_first"])
def test_gradients(name):
    overlap = getattr(iou_ops, f"pairwise_{name}")
    # No corner is within the finite step of another: overlaps have kinks there.
    a = jnp.array([[0.0, 0, 4, 4], [1, 2, 7, 5], [3, 0, 5, 9]])
    b = jnp.array([[2, 1, 6, 3.5], [-1, 3, 4.5, 8], [10, 10, 12, 12], [0.5, 0.5, 3.5, 3]])
    check_grads(jax.jit(overlap), (a, b), order=1, modes=["rev"], eps=1e-2, atol=0.01, rtol=0.01)


def test_rejects_other_shapes(rng):
    with pytest.raises(jaxtyping.TypeCheckError):
        iou_ops.pairwise_iou(random_boxes(rng, 3)[None], random_boxes(rng, 3))


def test_the_family_by_hand(compiled):
    # Side 2 at (0, 0) and at (2, 2): they touch; the box around has side 4, the centers are
    # 2 sqrt(2) apart.
    a, b = jnp.array([[0.0, 0, 2, 2], [0, 0, 4, 1]]), jnp.array([[2.0, 2, 4, 4], [0, 0, 1, 4]])
    np.testing.assert_allclose(compiled(iou_ops.giou)(a, b)[0], -0.5)
    np.testing.assert_allclose(compiled(iou_ops.diou)(a, b)[0], -0.25)
    np.testing.assert_allclose(compiled(iou_ops.ciou)(a, b)[0], -0.25)  # Of the same shape.
    # 4 x 1 and 1 x 4 at one corner: IoU 1 / 7, centers 1.5 sqrt(2) apart, a diagonal of 4 sqrt(2).
    v = (2 / np.pi * (np.arctan(4) - np.arctan(0.25))) ** 2
    want = 1 / 7 - 4.5 / 32 - v * v / (1 - 1 / 7 + v)
    np.testing.assert_allclose(compiled(iou_ops.ciou)(a, b)[1], want, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_matches_torchvision(name):
    a, b, cotangent = (jnp.asarray(GOLDEN[key]) for key in ("a", "b", "cotangent"))

    def total(a, b):
        value = jax.vmap(getattr(iou_ops, f"pairwise_{name}"))(a, b)
        return (value * cotangent).sum(), value

    (_, got), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(a, b)
    want, there = GOLDEN[name], np.isfinite(GOLDEN[name])
    assert len(want) == 66 and there.mean() > 0.85
    np.testing.assert_allclose(got[there], want[there], atol=1e-5)
    assert np.isfinite(got).all() and all(np.isfinite(grad).all() for grad in grads)
    # Compared relative to 1 / side, the size of a gradient.
    side = jnp.minimum(*(jnp.min(x[..., 2:] - x[..., :2], axis=(1, 2)) for x in (a, b)))
    solid = np.flatnonzero(np.arange(66) % 6 != 4)
    assert len(solid) >= 50
    for grad, key in zip(grads, "ab", strict=True):
        error = np.abs(grad - GOLDEN[f"{name}_grad_{key}"]) * side[:, None, None]
        assert error[solid].max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_aligned_is_the_diagonal_of_pairwise(name, rng):
    a, b = random_boxes(rng, 6), random_boxes(rng, 6)
    aligned, pairwise = getattr(iou_ops, name), getattr(iou_ops, f"pairwise_{name}")
    np.testing.assert_allclose(aligned(a, b), jnp.diag(pairwise(a, b)), rtol=1e-6)
    np.testing.assert_allclose(aligned(a[:, None], a[:, None]), 1, rtol=1e-6)
