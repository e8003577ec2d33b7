import functools
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.losses import boxes as box_losses

# Made by make_losses.py: 60 sets of 6 pairs.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")
OF_BOXES = ("iou", "giou", "diou", "ciou")


def smooth_l1_one(error, beta):
    """Oracle: eq. 3 for one number."""
    error = abs(error)
    return error * error / (2 * beta) if error < beta else error - beta / 2


def test_by_hand(compiled):
    # beta = 1: 0.5 * 0.25 + 2.5 + 0 + 0.5, in the rows' sums.
    pred = jnp.array([[0.5, -3.0], [2.0, 6.0]])
    target = jnp.array([[0.0, 0.0], [2.0, 5.0]])
    got = compiled(functools.partial(box_losses.smooth_l1, beta=1))(pred, target)
    np.testing.assert_allclose(got, [2.625, 0.5], rtol=1e-6)


@pytest.mark.parametrize("beta", [1 / 9, 1.0, 3.0])
def test_matches_oracle(compiled, rng, beta):
    pred, target = rng.normal(0, 2, (2, 3, 5, 4)).astype(np.float32)
    want = np.vectorize(smooth_l1_one)(pred - target, beta).sum(-1)
    run = functools.partial(box_losses.smooth_l1, beta=beta)
    got = compiled(run)(jnp.asarray(pred), jnp.asarray(target))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_no_beta_is_l1(compiled, rng):
    pred, target = map(jnp.asarray, rng.normal(0, 2, (2, 5, 4)).astype(np.float32))
    got = compiled(box_losses.l1)(pred, target)
    np.testing.assert_allclose(got, np.abs(pred - target).sum(-1), rtol=1e-6)
    np.testing.assert_array_equal(box_losses.smooth_l1(pred, target, beta=0), got)
    near = box_losses.smooth_l1(pred, target, beta=1e-6)
    np.testing.assert_allclose(near, got, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradients(rng, beta):
    # Errors off the kinks at 0 and beta, by more than the finite step.
    error = jnp.asarray(rng.choice([-2, -0.7, -0.3, 0.2, 0.4, 1], (4, 4)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    run = jax.jit(functools.partial(box_losses.smooth_l1, beta=beta))
    check_grads(run, (target + error, target), order=1, modes=["rev"], eps=1e-2, atol=0.01)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradient_at_the_kinks(beta):
    pred = jnp.array([[0.0, beta, -beta, 1e6]])
    grad = jax.grad(lambda p: box_losses.smooth_l1(p, jnp.zeros((1, 4)), beta=beta).sum())(pred)
    np.testing.assert_allclose(grad, [[0, beta > 0, -(beta > 0), 1]])


def test_half_precision_is_summed_in_float32():
    pred = jnp.full((1, 512), 1.0, jnp.bfloat16)
    got = box_losses.smooth_l1(pred, jnp.zeros((1, 512)), beta=0)
    np.testing.assert_array_equal(got, [512])
    assert got.dtype == jnp.float32


def test_rejects():
    with pytest.raises(ValueError, match=r"beta must not be negative\. Got -1"):
        box_losses.smooth_l1(jnp.zeros((1, 4)), jnp.zeros((1, 4)), beta=-1)
    with pytest.raises(jaxtyping.TypeCheckError):
        box_losses.smooth_l1(jnp.zeros((3, 4)), jnp.zeros((1, 4)), beta=1)


def test_losses_of_boxes_by_hand(compiled):
    # Apart on a diagonal: the hull has area 9, the centers are 2 sqrt(2) apart, its corners
    # 3 sqrt(2). Half covered: union 2, hull 2, centers 0.5 apart, corners sqrt(5).
    boxes = jnp.array([[0.0, 0, 1, 1], [0, 0, 2, 1]])
    targets = jnp.array([[2.0, 2, 3, 3], [0, 0, 1, 1]])
    v = (2 / np.pi * (np.arctan(2) - np.arctan(1))) ** 2
    want = {
        "iou": [1, 0.5],
        "giou": [1 + 7 / 9, 0.5],
        "diou": [1 + 8 / 18, 0.5 + 0.25 / 5],
        "ciou": [1 + 8 / 18, 0.5 + 0.25 / 5 + v * v / (0.5 + v)],
    }
    for name in OF_BOXES:
        got = compiled(getattr(box_losses, f"{name}_loss"))(boxes, targets)
        np.testing.assert_allclose(got, want[name], rtol=1e-6)


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_losses_of_boxes_meet_torchvision(name):
    boxes, targets = jnp.asarray(GOLDEN["boxes"]), jnp.asarray(GOLDEN["targets"])
    loss = getattr(box_losses, f"{name}_loss")
    got, pull = jax.vjp(jax.jit(loss), boxes, targets)
    grads = pull(jnp.ones_like(got))
    assert np.isfinite(got).all() and all(np.isfinite(grad).all() for grad in grads)
    # Only boxes without area make NaN of torchvision's complete loss.
    there, solid = np.isfinite(GOLDEN[name]), np.flatnonzero(np.arange(60) % 6 != 4)
    assert len(solid) >= 50 and there[solid].all() and there.all() == (name != "ciou")
    np.testing.assert_allclose(got[there], GOLDEN[name][there], atol=1e-5)
    # Gradients are of the size of 1 / side.
    side = jnp.minimum(*(jnp.min(x[..., 2:] - x[..., :2], axis=-1) for x in (boxes, targets)))
    for grad, of in zip(grads, ("boxes", "targets"), strict=True):
        error = np.abs(grad - GOLDEN[f"{name}_grad_{of}"]) * side[..., None]
        assert error[solid].max() < 1e-5


@pytest.mark.parametrize("name", OF_BOXES)
def test_gradients_of_box_losses(name):
    # No corner is within the finite step of another: overlaps have kinks there.
    boxes = jnp.array([[0.0, 0, 4, 4], [1, 2, 7, 5], [3, 0, 5, 9]])
    targets = jnp.array([[2, 1, 6, 3.5], [-1, 3, 4.5, 8], [10, 10, 12, 12.5]])
    loss = jax.jit(getattr(box_losses, f"{name}_loss"))
    check_grads(loss, (boxes, targets), order=1, modes=["rev"], eps=1e-2, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("name", OF_BOXES)
def test_hard_boxes_have_finite_losses(name):
    boxes = jnp.array(
        [
            [0.0, 0, 0, 0],  # Padding.
            [5, 5, 9, 9],
            [5, 5, 5, 9],  # No width, no height, corners in the wrong order.
            [5, 5, 9, 5],
            [9, 9, 5, 5],
            [-1e30, -3e38, 1e30, 3e38],
            [1e20, 1e20, 2e20, 2e20],
            [0, 0, 1e-20, 1e-20],
        ]
    )
    a, b = (x.reshape(-1, 4) for x in jnp.broadcast_arrays(boxes[:, None], boxes[None]))
    loss = getattr(box_losses, f"{name}_loss")
    value, pull = jax.vjp(jax.jit(loss), a, b)
    grads = pull(jnp.ones_like(value))
    assert np.isfinite(value).all() and all(np.isfinite(grad).all() for grad in grads)
    assert value[0] == 1 and not any(grad[0].any() for grad in grads)  # Both are padding.
    assert value[9] == 0  # Equal.


def test_box_losses_are_float32():
    box = jnp.array([[0, 0, 100, 50]], jnp.bfloat16)
    for name in OF_BOXES:
        assert getattr(box_losses, f"{name}_loss")(box, box).dtype == jnp.float32
