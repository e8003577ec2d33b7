import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import iou as iou_ops
from jaxdet.targets import matching

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
OPS = np.load(FOLDER / "ops.npz")
GOLDEN = dict(np.load(FOLDER / "targets.npz"))  # Made by make_targets.py: 60 images.
RULES = {
    "rpn": {"positive_iou": 0.7, "negative_iou": 0.3, "keep_best": True},
    "retinanet": {"positive_iou": 0.5, "negative_iou": 0.4, "keep_best": True},
    "gap": {"positive_iou": 0.5, "negative_iou": 0.4, "keep_best": False},
    "head": {"positive_iou": 0.5, "negative_iou": 0.5, "keep_best": False},
}


def random_iou(rng, n, m):
    """Overlaps with ties, zeros and values on both thresholds."""
    iou = rng.choice(np.arange(11) / 10, (n, m)) * (rng.uniform(size=(n, m)) < 0.6)
    return iou.astype(np.float32)


def whole_boxes(rng, n, side=12):
    """Boxes with whole corners, whose overlaps are exact however they are computed."""
    low = rng.integers(0, side, (n, 2))
    return np.hstack([low, low + rng.integers(0, side, (n, 2))]).astype(np.float32)


def overlaps_of(objects, anchors):
    """Oracle: IoU in NumPy."""
    low = np.maximum(objects[:, None, :2], anchors[None, :, :2])
    high = np.minimum(objects[:, None, 2:], anchors[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area_o, area_a = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (objects, anchors))
    union = area_o[:, None] + area_a - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0).astype(np.float32)


def priors_one(iou, valid, threshold):
    """Oracle: the object of each anchor by MultiBox's rule, -1 for negative ones."""
    n, m = iou.shape
    found = np.full(m, -1)
    for a in range(m):
        for i in range(n):
            better = found[a] < 0 or iou[i, a] > iou[found[a], a]
            if valid[i] and iou[i, a] >= threshold and better:
                found[a] = i
    for i in range(n):
        if valid[i] and iou[i].max() > 0:
            found[np.argmax(iou[i])] = i
    return found


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


@pytest.mark.parametrize(("name", "rule"), [("match_rpn", "rpn"), ("match_head", "head")])
def test_match_meets_torchvision_on_a_pyramid(name, rule):
    # golden/make_ops.py: -1 is negative, -2 ignored.
    boxes, anchors = jnp.asarray(OPS["boxes"][:5]), jnp.asarray(OPS["pyramid"])
    iou = jax.jit(iou_ops.pairwise_iou)(boxes, anchors)
    got = jax.jit(functools.partial(matching.match, **RULES[rule]))(iou, jnp.ones(5, bool))
    assert_is(got, OPS[name])


def assert_is(matches, want):
    """Compares with the rows that torchvision gives, -1 for negatives and -2 for ignored ones."""
    np.testing.assert_array_equal(matches.positive, want >= 0)
    np.testing.assert_array_equal(matches.negative, want == -1)
    np.testing.assert_array_equal(np.array(matches.index)[want >= 0], want[want >= 0])


@pytest.mark.parametrize("rule", RULES)
def test_match_meets_torchvision(rule):
    objects, valid, anchors = (GOLDEN[name] for name in ("objects", "valid", "anchors"))
    assert len(objects) >= 50
    options = RULES[rule]
    iou = np.stack(list(map(overlaps_of, objects, anchors)))
    of_matrix = jax.jit(jax.vmap(functools.partial(matching.match, **options)))(iou, valid)
    assert_is(of_matrix, GOLDEN[rule])
    of_boxes = jax.jit(jax.vmap(functools.partial(matching.match_boxes, **options)))
    assert_is(of_boxes(objects, valid, anchors), GOLDEN[rule])


def test_match_priors_meets_torchvision():
    objects, valid, anchors = (GOLDEN[name] for name in ("objects", "valid", "anchors"))
    assert_is(jax.jit(jax.vmap(matching.match_priors))(objects, valid, anchors), GOLDEN["ssd"])


@pytest.mark.parametrize("rule", ["rpn", "head"])
def test_match_boxes_is_match(compiled, rng, rule):
    objects, anchors = whole_boxes(rng, 9), whole_boxes(rng, 400)
    valid = jnp.asarray(rng.uniform(size=9) < 0.7)
    want = matching.match(jnp.asarray(overlaps_of(objects, anchors)), valid, **RULES[rule])
    run = functools.partial(matching.match_boxes, **RULES[rule])
    got = compiled(run)(jnp.asarray(objects), valid, jnp.asarray(anchors))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(set(np.array(want.index)[want.positive])) > 2


def test_match_priors_by_hand(compiled):
    objects = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 0, 60, 10], [90, 90, 99, 99]])
    anchors = jnp.array(
        [[0.0, 0, 10, 5], [0, 0, 10, 4], [0, 5, 10, 10], [59, 0, 69, 10], [59, 0, 69, 10]]
    )
    # Object 0 has IoU 0.5, 0.4, 0.5 with the first three and takes the first; object 1 the second;
    # the third chooses object 0. Object 2 takes one of two equal ones at 1 / 19; object 3 none.
    got = compiled(matching.match_priors)(objects, jnp.ones(4, bool), anchors)
    np.testing.assert_array_equal(got.positive, [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(got.negative, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(got.index[:4], [0, 1, 0, 2])


def test_the_later_of_two_objects_takes_the_prior(compiled):
    # Both overlap anchor 0 most, object 0 more than object 1 does.
    objects, anchors = jnp.array([[0.0, 0, 10, 9], [0, 0, 10, 3]]), jnp.array([[0.0, 0, 10, 10]])
    got = compiled(matching.match_priors)(objects, jnp.ones(2, bool), anchors)
    assert got.positive[0] and got.index[0] == 1
    got = compiled(matching.match_priors)(objects, jnp.array([True, False]), anchors)
    assert got.positive[0] and got.index[0] == 0


def test_match_priors_meets_oracle(rng):
    run = jax.jit(functools.partial(matching.match_priors, positive_iou=0.4))
    for _ in range(20):
        objects, anchors = whole_boxes(rng, 5), whole_boxes(rng, 25)
        valid = rng.uniform(size=5) < 0.7
        want = priors_one(overlaps_of(objects, anchors), valid, np.float32(0.4))
        assert_is(run(jnp.asarray(objects), jnp.asarray(valid), jnp.asarray(anchors)), want)


def test_each_object_keeps_its_best_in_one_program(rng):
    # Compiled with what makes the overlaps, equality must still hold bit for bit.
    low = rng.uniform(0, 100, (2050, 2))
    boxes = np.hstack([low, low + rng.uniform(5, 30, (2050, 2))]).astype(np.float32)
    objects, anchors = jnp.asarray(boxes[:50]), jnp.asarray(boxes[50:])
    iou = np.array(iou_ops.pairwise_iou(objects, anchors))
    want = (iou == iou.max(axis=1, keepdims=True)).any(axis=0)
    options = {"positive_iou": 1.0, "negative_iou": 0.3, "keep_best": True}
    valid = jnp.ones(50, bool)

    def assign(objects, anchors):
        return matching.match(iou_ops.pairwise_iou(objects, anchors), valid, **options)

    np.testing.assert_array_equal(jax.jit(assign)(objects, anchors).positive, want)
    got = jax.jit(functools.partial(matching.match_boxes, **options))(objects, valid, anchors)
    np.testing.assert_array_equal(got.positive, want)


@pytest.mark.parametrize("name", ["match_boxes", "match_priors", "ignore_regions"])
def test_memory_does_not_grow_with_the_objects(name):
    m = 50_000
    run = {
        "match_boxes": functools.partial(matching.match_boxes, **RULES["rpn"]),
        "match_priors": matching.match_priors,
        "ignore_regions": lambda objects, valid, anchors: matching.ignore_regions(
            matching.Matches(jnp.zeros(m, jnp.int32), jnp.zeros(m, bool), jnp.ones(m, bool)),
            anchors,
            objects,
            valid,
        ),
    }[name]

    def bytes_for(n):
        shapes = [((n, 4), jnp.float32), ((n,), jnp.bool_), ((m, 4), jnp.float32)]
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        return jax.jit(run).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    # One overlap of each pair would be 1 GB.
    assert bytes_for(5000) < 20 * 4 * m
    assert bytes_for(5000) < bytes_for(10) + 5000 * 64


def test_matching_passes_no_gradient(rng):
    objects, anchors = jnp.asarray(whole_boxes(rng, 4)), jnp.asarray(whole_boxes(rng, 30))
    valid = jnp.ones(4, bool)

    def total(anchors):
        matches = matching.match_boxes(objects, valid, anchors, **RULES["rpn"])
        matches = matching.ignore_regions(matches, anchors, objects, valid)
        return jnp.sum((matches.index + matches.positive + matches.negative)[:, None] * anchors)

    grad = jax.jit(jax.grad(total))(anchors)
    matches = matching.match_boxes(objects, valid, anchors, **RULES["rpn"])
    matches = matching.ignore_regions(matches, anchors, objects, valid)
    want = matches.index + matches.positive + matches.negative
    np.testing.assert_array_equal(grad, np.tile(np.array(want)[:, None], 4))


@pytest.mark.parametrize("n", [0, 2])
def test_no_objects_makes_all_negative(compiled, n):
    boxes, valid = jnp.tile(jnp.array([[0.0, 0, 5, 5]]), (n, 1)), jnp.zeros(n, bool)
    anchors = jnp.array([[0.0, 0, 5, 5], [0, 0, 0, 0], [1, 1, 5, 5]])
    of_matrix = functools.partial(matching.match, **RULES["rpn"])
    of_boxes = functools.partial(matching.match_boxes, **RULES["rpn"])
    for got in (
        compiled(of_matrix)(jnp.ones((n, 3)), valid),
        compiled(of_boxes)(boxes, valid, anchors),
        compiled(matching.match_priors)(boxes, valid, anchors),
    ):
        np.testing.assert_array_equal(got.index, 0)
        assert np.all(got.negative) and not np.any(got.positive)


def test_no_anchors_are_no_matches():
    objects, none = jnp.array([[0.0, 0, 5, 5]]), jnp.zeros((0, 4))
    valid = jnp.ones(1, bool)
    of_boxes = functools.partial(matching.match_boxes, **RULES["rpn"])
    for run in (of_boxes, matching.match_priors):
        assert run(objects, valid, none).index.shape == (0,)


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


@pytest.mark.parametrize(("keep_best", "best"), [(True, False), (False, True)])
def test_anchors_around_a_small_region_are_no_background(compiled, keep_best, best):
    """IoU with the region of 16 px: 0.25 (its best), 0.05 and 0; with that of 20 px: 0.39, ..."""
    anchors = jnp.array([[0.0, 0, 32, 32], [16, 16, 48, 48], [40, 0, 72, 32]])
    matches = matching.Matches(jnp.zeros(3, jnp.int32), jnp.zeros(3, bool), jnp.ones(3, bool))
    run = compiled(functools.partial(matching.ignore_regions, iou=0.3, keep_best=keep_best))
    there = jnp.array([True, False])
    for low, high, want in ((8.0, 24.0, best), (6.0, 26.0, False)):
        regions = jnp.array([[low, low, high, high], [40.0, 0, 72, 32]])
        got = run(matches, anchors, regions, there)
        np.testing.assert_array_equal(got.negative, [want, True, True])
    nowhere = run(matches, anchors, jnp.array([[90.0, 90, 99, 99], [0, 0, 0, 0]]), there)
    assert nowhere.negative.all()


def test_regions_meet_oracle(compiled, rng):
    anchors, regions = whole_boxes(rng, 60), whole_boxes(rng, 11)
    valid, negative = rng.uniform(size=11) < 0.5, rng.uniform(size=60) < 0.8
    low = np.maximum(anchors[:, None, :2], regions[None, :, :2])
    high = np.minimum(anchors[:, None, 2:], regions[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area = np.prod(anchors[:, 2:] - anchors[:, :2], axis=1)[:, None]
    hidden = np.any((shared >= 0.3 * area) & (area > 0) & valid, axis=1)
    matches = matching.Matches(jnp.zeros(60, jnp.int32), jnp.zeros(60, bool), jnp.array(negative))
    run = functools.partial(matching.ignore_regions, iof=0.3)
    got = compiled(run)(matches, jnp.asarray(anchors), jnp.asarray(regions), jnp.asarray(valid))
    np.testing.assert_array_equal(got.negative, negative & ~hidden)
    assert 5 < (negative & hidden).sum() < negative.sum() - 5


@pytest.mark.parametrize(
    ("high", "low"), [(0.3, 0.7), (1.1, 0.3), (0.5, -0.1)], ids=["order", "high", "low"]
)
def test_match_rejects(high, low):
    box, valid = jnp.ones((1, 4)), jnp.ones(1, bool)
    options = {"positive_iou": high, "negative_iou": low, "keep_best": True}
    for run in (
        lambda: matching.match(jnp.ones((1, 1)), valid, **options),
        lambda: matching.match_boxes(box, valid, box, **options),
    ):
        with pytest.raises(ValueError, match=f"Got negative_iou={low}, positive_iou={high}"):
            run()


def test_match_priors_rejects():
    with pytest.raises(ValueError, match=r"Got .*positive_iou=1\.5"):
        matching.match_priors(
            jnp.ones((1, 4)), jnp.ones(1, bool), jnp.ones((1, 4)), positive_iou=1.5
        )


def test_ignore_regions_rejects():
    matches = matching.Matches(jnp.zeros(1, jnp.int32), jnp.zeros(1, bool), jnp.ones(1, bool))
    box = jnp.zeros((1, 4))
    for wrong, got in (({"iof": 0}, r"0, 1\.0"), ({"iou": 1.1}, r"0\.5, 1\.1")):
        with pytest.raises(ValueError, match=rf"iof must be above 0, iou at least 0.* Got {got}"):
            matching.ignore_regions(matches, box, box, jnp.ones(1, bool), **wrong)
