import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import iou as iou_ops
from jaxdet.targets import matching

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "ops.npz")


def random_iou(rng, n, m):
    """Overlaps with ties, zeros and values on both thresholds."""
    iou = rng.choice(np.arange(11) / 10, (n, m)) * (rng.uniform(size=(n, m)) < 0.6)
    return iou.astype(np.float32)


def label_one(column, best_of_object, valid, high, low, keep_best):
    """Oracle: (index, positive, negative) of one anchor, from its overlaps with all objects."""
    objects = np.flatnonzero(valid)
    if len(objects) == 0:
        return 0, False, True
    index = max(objects, key=lambda i: (column[i], -i))
    is_best = any(column[i] == best_of_object[i] and column[i] > 0 for i in objects)
    if column[index] >= high or (keep_best and is_best):
        return index, True, False
    return index, False, bool(column[index] < low)


def test_match_by_hand(compiled):
    iou = jnp.array([[0.7, 0.69, 0.3, 0.29, 0.0], [0.0, 0.2, 0.2, 0.8, 0.0]])
    run = functools.partial(matching.match, positive_iou=0.7, negative_iou=0.3, keep_best=False)
    got = compiled(run)(iou, jnp.array([True, True]))
    np.testing.assert_array_equal(got.index, [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(got.positive, [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(got.negative, [0, 0, 0, 0, 1])


def test_keep_best_goes_to_the_anchors_own_object():
    # Anchor 0 is the best of object 1, but overlaps object 0 more; anchor 1 ties for object 0.
    iou = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.0, 0.1], [0.0, 0.0, 0.0]])
    got = matching.match(iou, jnp.ones(3, bool), positive_iou=0.7, negative_iou=0.6, keep_best=True)
    np.testing.assert_array_equal(got.positive, [1, 1, 0])
    np.testing.assert_array_equal(got.index[:2], [0, 0])
    # Object 2 overlaps nothing, and claims nothing.
    np.testing.assert_array_equal(got.negative, [0, 0, 1])


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5), (0.5, 0.0)], ids=str)
def test_match_meets_oracle(rng, keep_best, thresholds):
    high, low = map(np.float32, thresholds)
    run = jax.jit(
        functools.partial(
            matching.match,
            positive_iou=thresholds[0],
            negative_iou=thresholds[1],
            keep_best=keep_best,
        )
    )
    for _ in range(20):
        iou, valid = random_iou(rng, 4, 12), rng.uniform(size=4) < 0.7
        columns, best = iou.T, iou.max(axis=1)
        want = [label_one(c, best, valid, high, low, keep_best) for c in columns]
        got = run(jnp.asarray(iou), jnp.asarray(valid))
        np.testing.assert_array_equal(np.stack(got, axis=1), want)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("match_rpn", {"positive_iou": 0.7, "negative_iou": 0.3, "keep_best": True}),
        ("match_head", {"positive_iou": 0.5, "negative_iou": 0.5, "keep_best": False}),
    ],
)
def test_match_meets_torchvision(name, options):
    # golden/make_ops.py: -1 is negative, -2 ignored.
    boxes, anchors = jnp.asarray(GOLDEN["boxes"][:5]), jnp.asarray(GOLDEN["pyramid"])
    iou = jax.jit(iou_ops.pairwise_iou)(boxes, anchors)
    got = jax.jit(functools.partial(matching.match, **options))(iou, jnp.ones(5, bool))
    want = GOLDEN[name]
    np.testing.assert_array_equal(got.positive, want >= 0)
    np.testing.assert_array_equal(got.negative, want == -1)
    np.testing.assert_array_equal(np.array(got.index)[want >= 0], want[want >= 0])


def test_each_object_keeps_its_best_when_fused_with_iou(rng):
    # Compiled with what makes the overlaps, equality must still hold bit for bit.
    low = rng.uniform(0, 100, (250, 2))
    boxes = np.hstack([low, low + rng.uniform(5, 30, (250, 2))]).astype(np.float32)
    objects, anchors = jnp.asarray(boxes[:10]), jnp.asarray(boxes[10:])

    def assign(objects, anchors):
        iou = iou_ops.pairwise_iou(objects, anchors)
        valid = jnp.ones(10, bool)
        return matching.match(iou, valid, positive_iou=1.0, negative_iou=0.3, keep_best=True)

    iou = np.array(iou_ops.pairwise_iou(objects, anchors))
    want = (iou == iou.max(axis=1, keepdims=True)).any(axis=0)
    np.testing.assert_array_equal(jax.jit(assign)(objects, anchors).positive, want)


@pytest.mark.parametrize("n", [0, 2])
def test_no_objects_makes_all_negative(compiled, n):
    run = functools.partial(matching.match, positive_iou=0.5, negative_iou=0.5, keep_best=True)
    got = compiled(run)(jnp.ones((n, 3)), jnp.zeros(n, bool))
    np.testing.assert_array_equal(got.index, 0)
    assert np.all(got.negative) and not np.any(got.positive)


def test_regions_hide_negatives_only(compiled):
    anchors = jnp.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [0, 0, 10, 10]])
    anchors = jnp.concatenate([anchors, jnp.zeros((1, 4))])
    matches = matching.Matches(
        jnp.array([3, 0, 0, 0, 0]),
        jnp.array([True, False, False, False, False]),
        jnp.array([False, True, True, True, True]),
    )
    regions = jnp.array([[0.0, 0, 10, 10], [-50, -50, 50, 50]])
    valid = jnp.array([True, False])
    got = compiled(matching.ignore_regions)(matches, anchors, regions, valid)
    # Inside: all, exactly half, 0.4, all, and a padded anchor, which has no area.
    np.testing.assert_array_equal(got.negative, [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(got.positive, matches.positive)
    np.testing.assert_array_equal(got.index, matches.index)


@pytest.mark.parametrize(
    ("high", "low"), [(0.3, 0.7), (1.1, 0.3), (0.5, -0.1)], ids=["order", "high", "low"]
)
def test_match_rejects(high, low):
    with pytest.raises(ValueError, match=f"Got negative_iou={low}, positive_iou={high}"):
        matching.match(
            jnp.ones((1, 1)), jnp.ones(1, bool), positive_iou=high, negative_iou=low, keep_best=True
        )


def test_ignore_regions_rejects():
    matches = matching.Matches(jnp.zeros(1, jnp.int32), jnp.zeros(1, bool), jnp.ones(1, bool))
    box = jnp.zeros((1, 4))
    with pytest.raises(ValueError, match=r"iof must be above 0, at most 1\. Got 0"):
        matching.ignore_regions(matches, box, box, jnp.ones(1, bool), iof=0)
