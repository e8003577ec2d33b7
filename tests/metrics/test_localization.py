import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.metrics import localization
from jaxdet.structures import Detections, Instances

# 10 x 10; against it: 5 x 10 (IoU 0.5), 4 x 10 (0.4), 10 x 10 beside it (0), itself (1).
SUMS = jax.jit(localization.sums)
BOX = (0, 0, 10, 10)
HALF, LESS, BESIDE = (0, 0, 5, 10), (0, 0, 4, 10), (10, 0, 20, 10)


def judge(guesses, objects, *, n_valid=None):
    """Of rows (label, box)."""
    labels, boxes = zip(*guesses, strict=True)
    gt_labels, gt_boxes = zip(*objects, strict=True)
    n_valid = len(guesses) if n_valid is None else n_valid
    return jax.jit(localization.judge)(
        jnp.array(labels),
        jnp.array(boxes, jnp.float32),
        jnp.arange(len(guesses)) < n_valid,
        gt_labels=jnp.array(gt_labels),
        gt_boxes=jnp.array(gt_boxes, jnp.float32),
        gt_valid=jnp.ones(len(objects), bool),
    )


def test_judged_by_hand():
    got = judge([(2, BOX), (1, HALF), (1, LESS), (1, BESIDE)], [(1, BOX)])
    np.testing.assert_array_equal(got.class_right, [0, 1, 1, 1])
    np.testing.assert_array_equal(got.right, [0, 1, 0, 0])
    np.testing.assert_allclose(got.iou, [1, 0.5, 0.4, 0], atol=1e-6)


def test_any_object_of_the_class_will_do():
    # The right class and the right box, but not of one object: wrong.
    objects = [(1, BOX), (2, BESIDE), (1, (50, 50, 60, 60))]
    got = judge([(1, BESIDE), (1, (50, 50, 60, 60)), (3, BOX)], objects)
    np.testing.assert_array_equal(got.class_right, [1, 1, 0])
    np.testing.assert_array_equal(got.right, [0, 1, 0])
    np.testing.assert_allclose(got.iou, [1, 1, 1])


def test_padded_guesses_and_objects_are_wrong():
    got = judge([(1, BOX), (1, BOX)], [(1, BOX)], n_valid=1)
    np.testing.assert_array_equal(got.right, [1, 0])
    np.testing.assert_array_equal(got.iou, [1, 0])
    nothing = jax.jit(localization.judge)(
        jnp.array([0, 1]),
        jnp.array([BOX, BOX], jnp.float32),
        jnp.array([True, True]),
        gt_labels=jnp.array([0, 1]),
        gt_boxes=jnp.array([BOX, BOX], jnp.float32),
        gt_valid=jnp.array([False, False]),
    )
    assert not any(np.any(x) for x in nothing)


def batch_of(pictures):
    """Rows (label, box) of guesses and objects of each picture, in arrays of a fixed size."""

    def padded(rows, size):
        labels, boxes = np.zeros(size, np.int32), np.zeros((size, 4), np.float32)
        for i, (label, box) in enumerate(rows):
            labels[i], boxes[i] = label, box
        return labels, boxes, labels > 0

    guesses = [np.stack(x) for x in zip(*(padded(g, 6) for g, _ in pictures), strict=True)]
    truth = [np.stack(x) for x in zip(*(padded(t, 2) for _, t in pictures), strict=True)]
    none = jnp.zeros_like(truth[2])
    scores = np.linspace(0.9, 0.1, 6, dtype=np.float32)[None] * guesses[2]
    return (
        Detections(guesses[1], scores, guesses[0], guesses[2]),
        Instances(truth[1], truth[0], truth[2], none, none),
    )


PICTURES = [
    ([(1, HALF), (2, BOX)], [(1, BOX)]),  # Right at once; IoU 0.5.
    ([(2, BOX), (3, BOX), (1, BOX)], [(1, BOX)]),  # Right at the third guess; IoU 1.
    ([(1, LESS), (2, BOX)], [(1, BOX)]),  # The class is right, no box; IoU 0.4.
    ([(k, BOX) for k in (2, 3, 4, 5, 6, 1)], [(1, BOX)]),  # The sixth guess is one too many; 1.
    ([(1, BOX)], []),  # Nothing to find: does not count.
    ([(2, BESIDE)], [(1, BOX), (2, BESIDE)]),  # The second object; IoU 1.
]
WANT = {
    "top1": 3 / 5,
    "top5": 4 / 5,
    "localization_top1": 2 / 5,
    "localization_top5": 3 / 5,
    "mean_iou": (0.5 + 1 + 0.4 + 1 + 1) / 5,
}


def test_measures_by_hand():
    got = SUMS(*batch_of(PICTURES))
    assert {name: pytest.approx(float(s / n), abs=1e-6) for name, (s, n) in got.items()} == WANT


def test_sums_of_parts_are_the_whole():
    whole = SUMS(*batch_of(PICTURES))
    parts = [SUMS(*batch_of(PICTURES[a:b])) for a, b in ((0, 3), (3, 6))]
    added = jax.tree.map(lambda a, b: a + b, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)


@pytest.mark.parametrize("field", ["crowd", "difficult"])
def test_what_does_not_count_is_nothing_to_find(field):
    guesses, truth = batch_of(PICTURES)
    ignored = jnp.zeros_like(truth.valid).at[0, 0].set(True).at[5, 1].set(True)
    got = SUMS(guesses, truth._replace(**{field: ignored}))
    # Picture 0 has nothing left; the second object of picture 5 is no object any more.
    assert got["top1"] == (1, 4) and got["localization_top1"] == (0, 4)


def test_among_top_by_hand():
    logits = jnp.array([[0.1, 3, 2, -1], [5, 5, 1, 0], [5, 5, 1, 0], [jnp.nan] * 4])
    labels = jnp.array([2, 1, 0, 0])
    # Of two that are equal, the first comes first; what is no number is not right.
    for n, want in ((1, [False, False, True, False]), (2, [True, True, True, False])):
        np.testing.assert_array_equal(localization.among_top(logits, labels, n), want)


def test_among_top_agrees_with_sorting(rng):
    logits, labels = rng.normal(size=(50, 9)).astype(np.float32), rng.integers(0, 9, 50)
    best = np.argsort(-logits, axis=1)
    for n in (1, 5, 9):
        want = [label in row[:n] for label, row in zip(labels, best, strict=True)]
        got = localization.among_top(jnp.asarray(logits), jnp.asarray(labels), n)
        np.testing.assert_array_equal(got, want)
