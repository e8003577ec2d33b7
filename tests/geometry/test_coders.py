import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.geometry import coders

HEAD = (10.0, 10.0, 5.0, 5.0)


def random_boxes(rng, n):
    low, side = rng.uniform(0, 90, (n, 2)), rng.uniform(5, 50, (n, 2))
    return jnp.asarray(np.hstack([low, low + side]), jnp.float32)


def encode_one(box, anchor, weights):
    """Oracle: eqs. 6-9 in plain Python, one box at a time."""
    w, h, wa, ha = box[2] - box[0], box[3] - box[1], *(anchor[2:] - anchor[:2])
    dx = ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / wa
    dy = ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / ha
    return np.array([dx, dy, np.log(w / wa), np.log(h / ha)]) * weights


def test_encode_by_hand(compiled):
    anchor = jnp.array([0.0, 0.0, 10.0, 8.0])  # center (5, 4), size (10, 8)
    box = jnp.array([5.0, 0.0, 25.0, 4.0])  # center (15, 2), size (20, 4)
    got = compiled(coders.encode_boxes)(box, anchor)
    np.testing.assert_allclose(got, [1, -0.25, np.log(2), np.log(0.5)], rtol=1e-6)


def test_decode_by_hand(compiled):
    anchor = jnp.array([0.0, 0.0, 10.0, 8.0])
    deltas = jnp.array([10.0, -2.5, 5 * np.log(2), 5 * np.log(0.5)])
    got = compiled(functools.partial(coders.decode_boxes, weights=HEAD))(deltas, anchor)
    np.testing.assert_allclose(got, [5, 0, 25, 4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), HEAD], ids=str)
def test_encode_matches_oracle(compiled, rng, weights):
    boxes, anchors = random_boxes(rng, 50), random_boxes(rng, 50)
    pairs = zip(np.array(boxes, float), np.array(anchors, float), strict=True)
    want = [encode_one(box, anchor, weights) for box, anchor in pairs]
    got = compiled(functools.partial(coders.encode_boxes, weights=weights))(boxes, anchors)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), HEAD], ids=str)
def test_decode_inverts_encode(compiled, rng, weights):
    boxes, anchors = random_boxes(rng, 50), random_boxes(rng, 50)
    deltas = coders.encode_boxes(boxes, anchors, weights=weights)
    got = compiled(functools.partial(coders.decode_boxes, weights=weights))(deltas, anchors)
    np.testing.assert_allclose(got, boxes, rtol=1e-4, atol=1e-3)


def test_growth_is_capped():
    anchor, wild = jnp.array([0.0, 0, 16, 8]), jnp.array([0.0, 0, 1e6, 5])
    x1, y1, x2, y2 = coders.decode_boxes(wild, anchor)
    np.testing.assert_allclose([x2 - x1, y2 - y1], [1000, 500], rtol=1e-5)
    grad = jax.grad(lambda d: coders.decode_boxes(d, anchor).sum())(wild)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("code", [coders.encode_boxes, coders.decode_boxes])
def test_padded_rows_stay_finite(code):
    zero, crossed = jnp.zeros(4), jnp.array([0.0, 0, 9, -9])
    first, second = jnp.stack([zero, zero, crossed]), jnp.stack([zero, zero + 5, zero])
    total = jax.jit(jax.value_and_grad(lambda *a: code(*a).sum(), (0, 1)))
    value, grads = total(first, second)
    assert all(np.isfinite(x).all() for x in (value, *grads))


@pytest.mark.parametrize("code", [coders.encode_boxes, coders.decode_boxes])
def test_gradients(code, rng):
    a, b = random_boxes(rng, 3) / 20, random_boxes(rng, 3) / 20
    check_grads(jax.jit(code), (a, b), order=1, modes=["rev"], eps=1e-2, atol=0.03, rtol=0.03)


def test_decodes_half_precision_in_float32(rng):
    anchors = random_boxes(rng, 3) + 1000
    got = coders.decode_boxes(jnp.zeros((3, 4), jnp.bfloat16), anchors)
    np.testing.assert_allclose(got, anchors, rtol=1e-6)


def test_rejects_misaligned_anchors(rng):
    with pytest.raises(jaxtyping.TypeCheckError):
        coders.encode_boxes(random_boxes(rng, 3), random_boxes(rng, 1))


def test_rejects_weights_that_are_not_positive(rng):
    boxes = random_boxes(rng, 1)
    with pytest.raises(ValueError, match=r"weights must be positive\. Got \(0, 1, 1, 1\)"):
        coders.decode_boxes(boxes, boxes, weights=(0, 1, 1, 1))


def test_points_by_hand(compiled):
    frame = jnp.array([10.0, 20.0, 30.0, 60.0])  # center (20, 40), size (20, 40)
    points = jnp.array([[20.0, 40.0], [10.0, 20.0], [30.0, 60.0], [0.0, 50.0]])
    codes = jnp.array([[0, 0], [-0.5, -0.5], [0.5, 0.5], [-1, 0.25]])
    np.testing.assert_allclose(compiled(coders.encode_points)(points, frame), codes, atol=1e-6)
    np.testing.assert_allclose(compiled(coders.decode_points)(codes, frame), points, atol=1e-4)


def test_points_of_a_frame_without_area_are_finite():
    frame = jnp.full((1, 4), 5.0)
    encode = functools.partial(coders.encode_points, frames=frame)
    codes, pull = jax.vjp(encode, jnp.full((1, 2, 2), 5.0))
    assert np.isfinite(pull(codes)[0]).all() and not codes.any()


def test_each_set_of_points_has_its_frame(rng):
    frames, points = random_boxes(rng, 6), jnp.asarray(rng.uniform(0, 90, (6, 3, 2)), jnp.float32)
    want = [coders.encode_points(p, f) for p, f in zip(points, frames, strict=True)]
    np.testing.assert_array_equal(coders.encode_points(points, frames), want)
