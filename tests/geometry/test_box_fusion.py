import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.geometry import box_fusion

# golden/make_fusion.py made the numbers.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "fusion.npz")
N, K = 48, 30
OPTIONS = {"n_models": 3, "iou_threshold": 0.5, "max_outputs": K}
fuse = jax.jit(functools.partial(box_fusion.weighted_box_fusion, **OPTIONS))


def detections(rng, n=N):
    """Boxes of several models: many around few objects; some have the score of another."""
    center, side = rng.uniform(0, 100, (6, 2)), rng.uniform(20, 60, (6, 2))
    which = rng.integers(0, 6, n)
    low = center[which] + rng.normal(0, 4, (n, 2))
    boxes = np.hstack([low, low + side[which] * rng.uniform(0.8, 1.2, (n, 2))])
    scores, groups, valid = rng.uniform(0.05, 1, n), which % 2 + 4, rng.uniform(size=n) < 0.8
    scores[: n // 4] = scores[n // 4 : n // 2]
    floats = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    return *floats, jnp.asarray(groups), jnp.asarray(valid)


def overlap(a, b):
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height)


def fused_box(members):
    """Oracle: a cluster's box from its (score, box) pairs."""
    return sum(score * box for score, box in members) / sum(score for score, _ in members)


def naive(boxes, scores, groups, valid, *, n_models, iou_threshold, max_outputs):
    """Oracle: the paper's steps with lists, float64."""
    boxes, scores = np.array(boxes, np.float64), np.array(scores, np.float64)
    clusters, labels = [], []
    for i in sorted(np.flatnonzero(valid), key=lambda i: -scores[i]):
        overlaps = [
            overlap(fused_box(members), boxes[i]) if label == groups[i] else 0
            for members, label in zip(clusters, labels, strict=True)
        ]
        if overlaps and max(overlaps) > iou_threshold:
            clusters[int(np.argmax(overlaps))].append((scores[i], boxes[i]))
        else:
            clusters.append([(scores[i], boxes[i])])
            labels.append(groups[i])
    out = []
    for members, label in zip(clusters, labels, strict=True):
        mean = np.mean([score for score, _ in members])
        agreement = min(len(members), n_models) / n_models
        out.append((fused_box(members), mean * agreement, label))
    return sorted(out, key=lambda row: -row[1])[:max_outputs]


def rows(fused):
    """Boxes, scores and groups that there are; checks what padding looks like."""
    *parts, valid = map(np.array, fused)
    assert not valid[np.cumsum(~valid) > 0].any()
    assert not any(part[~valid].any() for part in parts)
    return [part[valid] for part in parts]


def test_by_hand(compiled):
    # Two of three models agree on one object (IoU 9 / 11); the third sees another.
    boxes = jnp.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    scores = jnp.array([0.2, 0.6, 0.9])
    run = compiled(functools.partial(box_fusion.weighted_box_fusion, **OPTIONS))
    got = run(boxes, scores, jnp.array([7, 7, 8]), jnp.ones(3, bool))
    fused, left, groups = rows(got)
    np.testing.assert_allclose(fused, [[50, 50, 60, 60], [0.75, 0, 10.75, 10]], rtol=1e-6)
    np.testing.assert_allclose(left, [0.9 / 3, 0.8 / 2 * 2 / 3], rtol=1e-6)
    np.testing.assert_array_equal(groups, [8, 7])
    assert got.boxes.shape == (K, 4)


def test_matches_naive_loop(rng):
    sizes = []
    for _ in range(20):
        arrays = detections(rng)
        want = naive(*arrays, **OPTIONS)
        boxes, scores, groups = rows(fuse(*arrays))
        np.testing.assert_allclose(boxes, [row[0] for row in want], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(scores, [row[1] for row in want], rtol=1e-5)
        np.testing.assert_array_equal(groups, [row[2] for row in want])
        sizes.append(len(want))
    assert min(sizes) > 6 and max(sizes) < 30


def test_slots_hold_the_best(rng):
    arrays = detections(rng)
    few = jax.jit(functools.partial(box_fusion.weighted_box_fusion, **OPTIONS | {"max_outputs": 4}))
    for got, want in zip(few(*arrays), fuse(*arrays), strict=True):
        np.testing.assert_array_equal(got, want[:4])


@pytest.mark.parametrize("case", ["equal_0.55", "equal_0.3", "weighted_0.55"])
def test_matches_the_authors_package(case):
    boxes, scores, weights = GOLDEN["boxes"], GOLDEN["scores"], GOLDEN["weights"]
    if case.startswith("weighted"):
        scores = scores * (weights / weights.mean())[:, None]
    run = functools.partial(
        box_fusion.weighted_box_fusion,
        n_models=3,
        iou_threshold=float(case.split("_")[1]),
        max_outputs=60,
    )
    got = jax.jit(run)(
        jnp.asarray(boxes.reshape(-1, 4)),
        jnp.asarray(scores.ravel(), jnp.float32),
        jnp.asarray(GOLDEN["groups"].ravel()),
        jnp.ones(90, bool),
    )
    got_boxes, got_scores, got_groups = rows(got)
    np.testing.assert_allclose(got_boxes, GOLDEN[f"{case}_boxes"], atol=1e-3)  # Of 640 px.
    np.testing.assert_allclose(got_scores, GOLDEN[f"{case}_scores"], rtol=1e-5)
    np.testing.assert_array_equal(got_groups, GOLDEN[f"{case}_groups"])
    assert 20 < len(got_boxes) < 60


def test_joins_the_closest_cluster():
    # The last box overlaps both clusters by more than the threshold, the second one more.
    boxes = jnp.array([[0.0, 0, 10, 10], [6, 0, 16, 10], [4, 0, 14, 10]])
    options = OPTIONS | {"iou_threshold": 0.3}
    got = box_fusion.weighted_box_fusion(
        boxes, jnp.array([0.9, 0.8, 0.4]), jnp.zeros(3, int), jnp.ones(3, bool), **options
    )
    fused, _, _ = rows(got)
    np.testing.assert_allclose(fused, [[16 / 3, 0, 46 / 3, 10], [0, 0, 10, 10]], rtol=1e-6)


def test_equal_scores_and_overlaps_rank_by_index():
    # The last box is as close to the one as to the other.
    boxes = jnp.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [2, 0, 12, 10], [50, 0, 60, 10]])
    options = OPTIONS | {"n_models": 1, "iou_threshold": 0.6}
    got = box_fusion.weighted_box_fusion(
        boxes, jnp.full(4, 0.5), jnp.zeros(4, int), jnp.ones(4, bool), **options
    )
    fused, _, _ = rows(got)
    np.testing.assert_allclose(fused, [[1, 0, 11, 10], [4, 0, 14, 10], [50, 0, 60, 10]], rtol=1e-6)


def test_iou_at_the_threshold_does_not_join():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    args = jnp.array([0.9, 0.8]), jnp.zeros(2, int), jnp.ones(2, bool)
    assert len(rows(fuse(boxes, *args))[0]) == 2
    assert len(rows(fuse(boxes.at[1, 3].set(5.001), *args))[0]) == 1


def test_one_model_without_overlaps_is_sorting(rng):
    boxes, scores, groups, valid = detections(rng)
    options = OPTIONS | {"n_models": 1, "iou_threshold": 1, "max_outputs": N}
    got = box_fusion.weighted_box_fusion(boxes, scores, groups, valid, **options)
    order = np.argsort(-np.array(scores), kind="stable")
    order = order[np.array(valid)[order]]
    fused, left, labels = rows(got)
    np.testing.assert_allclose(fused, boxes[order], rtol=1e-6)
    np.testing.assert_allclose(left, scores[order], rtol=1e-6)
    np.testing.assert_array_equal(labels, groups[order])


def test_rows_that_are_not_valid_do_nothing(rng):
    boxes, scores, groups, valid = detections(rng)
    want = fuse(boxes, scores, groups, valid)
    ruined = jnp.where(valid[:, None], boxes, jnp.nan), jnp.where(valid, scores, jnp.inf)

    def total(boxes, scores, valid):
        got = fuse(boxes, scores, groups, valid)
        return got.scores.sum() + got.boxes.sum(), got

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    grads, got = grad(*ruined, valid)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for array in grads:
        assert np.isfinite(array).all() and not array[~valid].any() and array[valid].any()
    # Neither do scores of 0, below or NaN.
    scores = jnp.where(valid, scores, jnp.where(jnp.arange(N) % 2 == 0, -1, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, fuse(boxes, scores, groups, valid | True), want)


def test_boxes_without_area_stay_alone():
    boxes = jnp.array([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 9, 9], [9, 9, 0, 0]])
    scores = jnp.array([0.9, 0.8, 0.7, 0.6])
    fused, left, _ = rows(fuse(boxes, scores, jnp.zeros(4, int), jnp.ones(4, bool)))
    np.testing.assert_allclose(fused, boxes, rtol=1e-6)
    np.testing.assert_allclose(left, scores / 3, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_valid(n):
    got = fuse(jnp.ones((n, 4)), jnp.ones(n), jnp.zeros(n, int), jnp.zeros(n, bool))
    assert len(rows(got)[0]) == 0 and got.scores.shape == (K,)


def test_vmap_is_one_image_at_a_time(rng):
    images = [detections(rng) for _ in range(3)]
    batch = jax.jit(jax.vmap(fuse))(*map(jnp.stack, zip(*images, strict=True)))
    for i, image in enumerate(images):
        for got, want in zip(batch, fuse(*image), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-6)


def test_gradients(rng):
    # Far enough from the threshold, and scores from each other, for a finite step.
    boxes, _, groups, _ = detections(rng, 20)
    scores = jnp.asarray(rng.permutation(np.linspace(0.2, 0.9, 20)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(K, 5)), jnp.float32)

    def total(boxes, scores):
        got = fuse(boxes, scores, groups, jnp.ones(20, bool))
        return jnp.sum(weights[:, :4] * got.boxes) / 10 + weights[:, 4] @ got.scores

    check_grads(
        jax.jit(total), (boxes, scores), order=1, modes=["rev"], eps=1e-2, atol=0.01, rtol=0.01
    )
    assert rows(fuse(boxes, scores, groups, jnp.ones(20, bool)))[1].shape[0] < 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_models": 0}, "n_models must be positive. Got 0"),
        ({"iou_threshold": -0.5}, "iou_threshold must be .* Got -0.5"),
        ({"max_outputs": 0}, "max_outputs must be positive. Got 0"),
    ],
)
def test_rejects(options, message):
    arrays = jnp.zeros((2, 4)), jnp.zeros(2), jnp.zeros(2, int), jnp.ones(2, bool)
    with pytest.raises(ValueError, match=message):
        box_fusion.weighted_box_fusion(*arrays, **OPTIONS | options)
