import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms, soft_nms

N, K = 40, 24


def clustered(rng, n=N):
    """Boxes of a detector: many around few objects; scores with ties."""
    center, side = rng.uniform(0, 100, (5, 2)), rng.uniform(20, 60, (5, 2))
    which = rng.integers(0, 5, n)
    low = center[which] + rng.normal(0, 6, (n, 2))
    boxes = np.hstack([low, low + side[which] * rng.uniform(0.7, 1.4, (n, 2))])
    return jnp.asarray(boxes, jnp.float32), jnp.asarray(rng.integers(1, 20, n) / 20, jnp.float32)


def linear(iou, threshold=0.3):
    return 1 - iou if iou > threshold else 1.0


def gaussian(iou, sigma=0.5):
    return np.exp(-(iou**2) / sigma)


RULES = {
    "linear": (linear, functools.partial(soft_nms.soft_nms_linear, iou_threshold=0.3)),
    "gaussian": (gaussian, functools.partial(soft_nms.soft_nms_gaussian, sigma=0.5)),
}


def published(decay, boxes, scores, groups, valid, score_threshold):
    """Oracle: the loop of the paper's figure 2; index and score of each box taken."""
    left = {int(i): float(scores[i]) for i in np.flatnonzero(valid)}
    iou, out = np.array(iou_ops.pairwise_iou(boxes, boxes), np.float64), []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score > score_threshold:
            out.append((best, score))
        for i in left:
            if groups[i] == groups[best]:
                left[i] *= decay(iou[best, i])
    return out


def rows(decayed):
    """Indices and scores that stay; checks what padding looks like."""
    indices, scores, valid = map(np.array, decayed)
    assert not valid[np.cumsum(~valid) > 0].any()
    assert not indices[~valid].any() and not scores[~valid].any()
    return indices[valid].tolist(), scores[valid]


@pytest.mark.parametrize("rule", RULES)
def test_matches_published_loop(rng, rule):
    decay, soft = RULES[rule]
    run = jax.jit(functools.partial(soft, score_threshold=0.05, max_outputs=K))
    lengths, decayed = [], []
    for _ in range(10):
        boxes, scores = clustered(rng)
        groups = jnp.asarray(rng.choice([-7, 90], N))
        valid = jnp.asarray(rng.uniform(size=N) < 0.8)
        want = published(decay, boxes, scores, groups, valid, 0.05)
        indices, left = rows(run(boxes, scores, groups, valid))
        assert indices == [i for i, _ in want][:K]
        np.testing.assert_allclose(left, [score for _, score in want][:K], rtol=1e-5)
        assert (np.diff(left) <= 0).all()
        lengths.append(len(want))
        decayed.append((left < np.array(scores)[indices] - 1e-3).mean())
    assert min(lengths) < K < max(lengths) and min(decayed) > 0.3


def test_linear_by_hand(compiled):
    # IoU with the first: 1 / 2 and 1 / 4; of the other two: 0.
    boxes = jnp.array([[0.0, 0, 10, 8], [0, 0, 10, 4], [0, 6, 10, 8]])
    options = {"iou_threshold": 0.25, "score_threshold": 0.1, "max_outputs": 3}
    run = compiled(functools.partial(soft_nms.soft_nms_linear, **options))
    args = boxes, jnp.array([0.9, 0.8, 0.5])
    got = run(*args, jnp.zeros(3, int), jnp.ones(3, bool))
    assert rows(got)[0] == [0, 2, 1]  # The third at the threshold keeps its score.
    np.testing.assert_allclose(got.scores, [0.9, 0.5, 0.4], rtol=1e-6)
    got = run(*args, jnp.array([0, 1, 0]), jnp.ones(3, bool))
    np.testing.assert_allclose(got.scores, [0.9, 0.8, 0.5], rtol=1e-6)


def test_gaussian_by_hand(compiled):
    boxes = jnp.array([[0.0, 0, 10, 8], [0, 0, 10, 4], [20, 0, 30, 8]])
    options = {"sigma": 0.5, "score_threshold": 0.4, "max_outputs": 4}
    run = compiled(functools.partial(soft_nms.soft_nms_gaussian, **options))
    got = run(boxes, jnp.array([0.9, 0.8, 0.3]), jnp.zeros(3, int), jnp.ones(3, bool))
    assert rows(got)[0] == [0, 1]
    np.testing.assert_allclose(got.scores, [0.9, 0.8 * np.exp(-0.5), 0, 0], rtol=1e-6)


def test_small_sigma_is_nms(rng):
    # Any overlap then removes, as with an IoU threshold of 0.
    boxes, scores = clustered(rng)
    groups, valid = jnp.asarray(rng.integers(0, 3, N)), jnp.asarray(rng.uniform(size=N) < 0.9)
    want = nms.batched_nms(boxes, scores, groups, valid, iou_threshold=0, max_outputs=K)
    options = {"sigma": 1e-12, "score_threshold": 1e-6, "max_outputs": K}
    got = soft_nms.soft_nms_gaussian(boxes, scores, groups, valid, **options)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.valid, want.valid)
    np.testing.assert_array_equal(got.scores, jnp.where(want.valid, scores[want.indices], 0))


def test_no_overlap_counts_is_sorting(rng):
    boxes, scores = clustered(rng)
    options = {"score_threshold": 0, "max_outputs": N}
    everything = jnp.zeros(N, int), jnp.ones(N, bool)
    order = np.argsort(-np.array(scores), kind="stable").tolist()
    got = soft_nms.soft_nms_linear(boxes, scores, *everything, iou_threshold=1, **options)
    assert rows(got)[0] == order
    got = soft_nms.soft_nms_gaussian(boxes, scores, *everything, sigma=1e9, **options)
    assert rows(got)[0] == order


def test_same_box_twice_goes():
    # 1 - IoU is 0: the linear rule suppresses it even with no threshold of the score.
    boxes = jnp.array([[0.0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 30, 30]])
    options = {"iou_threshold": 0.5, "score_threshold": 0, "max_outputs": 3}
    got = soft_nms.soft_nms_linear(
        boxes, jnp.full(3, 0.5), jnp.zeros(3, int), jnp.ones(3, bool), **options
    )
    assert rows(got)[0] == [0, 2]


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_are_not_valid_do_nothing(rng, rule):
    boxes, scores = clustered(rng, 20)
    run = functools.partial(RULES[rule][1], score_threshold=0.05, max_outputs=K)
    want = run(boxes, scores, jnp.zeros(20, int), jnp.ones(20, bool))
    junk = jnp.full((5, 4), jnp.nan).at[0].set(boxes[want.indices[0]])
    padded = jnp.concatenate([boxes, junk])
    junk_scores = jnp.concatenate([scores, jnp.array([9.0, jnp.inf, jnp.nan, 9, 9])])
    groups, valid = jnp.zeros(25, int), jnp.arange(25) < 20

    def total(scores):
        got = run(padded, scores, groups, valid)
        return got.scores.sum(), got

    (_, got), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(junk_scores)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.valid, want.valid)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-6)
    assert np.isfinite(grad).all() and not grad[20:].any() and grad[:20].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_valid(rule, n):
    run = functools.partial(RULES[rule][1], score_threshold=0, max_outputs=2)
    args = jnp.ones((n, 4)), jnp.full(n, jnp.nan), jnp.zeros(n, int)
    assert rows(run(*args, jnp.zeros(n, bool)))[0] == []
    assert rows(run(*args, jnp.ones(n, bool)))[0] == []  # Nor is a score of NaN above 0.


def test_vmap_is_one_image_at_a_time(rng):
    boxes, scores = map(jnp.stack, zip(*[clustered(rng) for _ in range(3)], strict=True))
    groups = jnp.asarray(rng.integers(0, 2, (3, N)))
    valid = jnp.asarray(rng.uniform(size=(3, N)) < [[1.0], [0.5], [0.0]])
    run = functools.partial(RULES["gaussian"][1], score_threshold=0.1, max_outputs=K)
    batch = jax.jit(jax.vmap(run))(boxes, scores, groups, valid)
    single = jax.jit(run)
    for i in range(3):
        want = single(boxes[i], scores[i], groups[i], valid[i])
        np.testing.assert_array_equal(batch.indices[i], want.indices)
        np.testing.assert_allclose(batch.scores[i], want.scores, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_gradients(rng, rule):
    # Scores apart, so that a finite step does not change the order.
    boxes, _ = clustered(rng, 12)
    scores = jnp.asarray(rng.permutation(np.linspace(0.3, 0.9, 12)), jnp.float32)
    run = functools.partial(RULES[rule][1], score_threshold=0.02, max_outputs=12)
    weights = jnp.asarray(rng.normal(size=12), jnp.float32)

    def total(boxes, scores):
        return run(boxes, scores, jnp.zeros(12, int), jnp.ones(12, bool)).scores @ weights

    check_grads(
        jax.jit(total), (boxes, scores), order=1, modes=["rev"], eps=1e-3, atol=2e-3, rtol=2e-3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0}, "sigma must be positive. Got 0"),
        ({"score_threshold": -0.1}, "score_threshold must not be negative. Got -0.1"),
        ({"max_outputs": 0}, "max_outputs must be positive. Got 0"),
    ],
)
def test_rejects(options, message):
    options = {"sigma": 0.5, "score_threshold": 0, "max_outputs": 1} | options
    arrays = jnp.zeros((2, 4)), jnp.zeros(2), jnp.zeros(2, int), jnp.ones(2, bool)
    with pytest.raises(ValueError, match=message):
        soft_nms.soft_nms_gaussian(*arrays, **options)


def test_rejects_other_overlaps():
    arrays = jnp.zeros((2, 4)), jnp.zeros(2), jnp.zeros(2, int), jnp.ones(2, bool)
    with pytest.raises(ValueError, match=r"iou_threshold must be .* Got 1.5"):
        soft_nms.soft_nms_linear(*arrays, iou_threshold=1.5, score_threshold=0, max_outputs=1)
