import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import box_merging

OPTIONS = {"threshold": 0.5, "max_outputs": 30}
merge = jax.jit(functools.partial(box_merging.merge_boxes, **OPTIONS))


def windows(rng, n=40):
    """Boxes of several windows: many around few objects of two classes."""
    center, side = rng.uniform(0, 100, (6, 2)), rng.uniform(20, 60, (6, 2))
    which = rng.integers(0, 6, n)
    low = center[which] + rng.normal(0, 4, (n, 2))
    boxes = np.hstack([low, low + side[which] * rng.uniform(0.8, 1.2, (n, 2))])
    scores, groups, valid = rng.uniform(0.05, 1, n), which % 2 + 4, rng.uniform(size=n) < 0.8
    floats = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    return *floats, jnp.asarray(groups), jnp.asarray(valid)


def match_one(a, b):
    """Oracle: how badly two boxes agree."""
    distance = np.hypot(*((a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2))
    side = np.mean([a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]])
    overlap = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    area = (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) / 2
    return distance / side + 1 - np.prod(overlap) / area


def naive(boxes, scores, groups, valid, *, threshold, max_outputs):
    """Oracle: the paper's steps d to g with a list that shrinks, float64."""
    boxes, scores = np.array(boxes, np.float64), np.array(scores, np.float64)
    left = [(boxes[i], scores[i], int(groups[i])) for i in np.flatnonzero(valid)]
    while True:
        pairs = [
            (match_one(left[i][0], left[j][0]), i, j)
            for i in range(len(left))
            for j in range(i + 1, len(left))
            if left[i][2] == left[j][2]
        ]
        if not pairs or min(pairs)[0] > threshold:
            return sorted(left, key=lambda row: -row[1])[:max_outputs]
        _, i, j = min(pairs)
        mean, total = (left[i][0] + left[j][0]) / 2, left[i][1] + left[j][1]
        left[i] = (mean, total, left[i][2])
        del left[j]


def rows(merged):
    """Boxes, scores and groups that there are; checks what padding looks like."""
    *parts, valid = map(np.array, merged)
    assert not valid[np.cumsum(~valid) > 0].any()
    assert not any(part[~valid].any() for part in parts)
    return [part[valid] for part in parts]


def test_match_by_hand(compiled):
    # Beside each other: centers 10 apart, sides 10, no overlap. Shifted by half: 5 / 10 + 1 - 1/2.
    # Of half the side, in the corner: 2.5 sqrt(2) / 7.5 + 1 - 25 / 62.5.
    a = jnp.array([[0.0, 0, 10, 10]])
    b = jnp.array([[0.0, 0, 10, 10], [10, 0, 20, 10], [5, 0, 15, 10], [0, 0, 5, 5]])
    want = [[0, 2, 1, np.sqrt(2) / 3 + 0.6]]
    np.testing.assert_allclose(compiled(box_merging.match_scores)(a, b), want, rtol=1e-6)


def test_by_hand(compiled):
    # The first three are of one class: two merge (to 1 2 11 12, match 0.38), the third is far.
    boxes = jnp.array([[0.0, 2, 10, 12], [2, 2, 12, 12], [50, 50, 60, 60], [0, 2, 10, 12]])
    scores = jnp.array([0.9, 0.8, 0.95, 0.5])
    groups = jnp.array([1, 1, 1, 2])
    run = compiled(functools.partial(box_merging.merge_boxes, **OPTIONS))
    got = run(boxes, scores, groups, jnp.ones(4, bool))
    merged, sums, labels = rows(got)
    np.testing.assert_allclose(merged, [[1, 2, 11, 12], [50, 50, 60, 60], [0, 2, 10, 12]])
    np.testing.assert_allclose(sums, [1.7, 0.95, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(labels, [1, 1, 2])
    assert got.boxes.shape == (30, 4)


def test_matches_naive_loop(rng):
    left = []
    for _ in range(20):
        arrays = windows(rng)
        want = naive(*arrays, **OPTIONS)
        boxes, scores, groups = rows(merge(*arrays))
        np.testing.assert_allclose(boxes, [row[0] for row in want], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(scores, [row[1] for row in want], rtol=1e-5)
        np.testing.assert_array_equal(groups, [row[2] for row in want])
        left.append(len(want))
    assert min(left) > 2 and max(left) < 25


def test_scores_are_neither_lost_nor_made(rng):
    boxes, scores, groups, valid = windows(rng)
    got = merge(boxes, scores, groups, valid)
    for group in (4, 5):
        want = float(np.sum(scores, where=valid & (groups == group)))
        total = float(np.sum(got.scores, where=got.groups == group))
        assert total == pytest.approx(want, rel=1e-5) and want > 1


def test_what_is_merged_does_not_merge_again(rng):
    got = merge(*windows(rng))
    again = merge(got.boxes, got.scores, got.groups, got.valid)
    for first, second in zip(got, again, strict=True):
        np.testing.assert_array_equal(first, second)


def test_thresholds_that_merge_nothing_and_everything(rng):
    arrays = windows(rng)
    at = jax.jit(lambda t: box_merging.merge_boxes(*arrays, threshold=t, max_outputs=40))
    assert at(-1.0).valid.sum() == arrays[-1].sum()
    assert at(1e9).valid.sum() == 2


def test_padded_rows_do_nothing(rng):
    boxes, scores, groups, valid = windows(rng)
    rubbish = merge(
        jnp.where(valid[:, None], boxes, jnp.nan), jnp.where(valid, scores, 9), groups, valid
    )
    for got, want in zip(rubbish, merge(boxes, scores, groups, valid), strict=True):
        np.testing.assert_array_equal(got, want)


def test_boxes_without_area_merge_where_they_are_one():
    boxes = jnp.array([[5.0, 5, 5, 5], [5, 5, 5, 5], [50, 50, 60, 50]])
    arrays = boxes, jnp.ones(3), jnp.ones(3, jnp.int32), jnp.ones(3, bool)
    got = jax.jit(functools.partial(box_merging.merge_boxes, threshold=1, max_outputs=3))(*arrays)
    np.testing.assert_array_equal(got.boxes[:2], [[5, 5, 5, 5], [50, 50, 60, 50]])
    np.testing.assert_array_equal(got.scores, [2, 1, 0])


def test_no_boxes():
    got = box_merging.merge_boxes(
        jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, jnp.int32), jnp.zeros(0, bool), **OPTIONS
    )
    assert got.boxes.shape == (30, 4) and not got.valid.any()


def test_slots_hold_the_best(rng):
    arrays = windows(rng)
    few = box_merging.merge_boxes(*arrays, threshold=0.5, max_outputs=2)
    for got, want in zip(few, merge(*arrays), strict=True):
        np.testing.assert_array_equal(got, want[:2])
    with pytest.raises(ValueError, match=r"max_outputs.*0"):
        box_merging.merge_boxes(*arrays, threshold=0.5, max_outputs=0)


def test_vmap_is_image_by_image(rng):
    images = [windows(rng) for _ in range(3)]
    batch = [jnp.stack(arrays) for arrays in zip(*images, strict=True)]
    got = jax.jit(jax.vmap(functools.partial(box_merging.merge_boxes, **OPTIONS)))(*batch)
    for i, image in enumerate(images):
        for a, b in zip(got, merge(*image), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-5)
