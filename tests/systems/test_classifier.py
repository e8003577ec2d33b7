import functools
from typing import Any

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import localizer_cases
import numpy as np
import pytest

from jaxdet.systems import classifier
from jaxdet.systems.classifier import DetectOptions, LossOptions

BATCH = localizer_cases.SINGLE


class Says(classifier.Classifier):
    """A classifier whose logits are given."""

    network: Any = None
    logits: Any = None

    def maps(self, images, *, train):
        del train
        return (images.pixels.astype(jnp.float32),)

    def head(self, maps, *, train):
        del maps, train
        return jnp.array(self.logits, jnp.float32)


LOGITS = [[2.0, 0, -1], [0, 1, 0], [0, 0, 3], [1, 1, 1]]
# Of the first objects that count, less 1.
LABELS = [0, 2, 2, 0]


def entropy(logits, label, smoothing=0.0):
    """By the formula, for one picture."""
    p = np.exp(logits) / np.sum(np.exp(logits))
    target = np.full(len(p), smoothing / len(p))
    target[label] += 1 - smoothing
    return -np.sum(target * np.log(p))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_by_hand(smoothing):
    truth = BATCH.instances
    np.testing.assert_array_equal(truth.labels[jnp.arange(4), jnp.array([0, 1, 0, 0])] - 1, LABELS)
    terms, aux = classifier.loss(
        Says(logits=LOGITS),
        {"params": {}},
        BATCH,
        train=False,
        options=LossOptions(label_smoothing=smoothing),
    )
    total, count = terms["class"]
    want = [entropy(row, label, smoothing) for row, label in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(total, sum(want), rtol=1e-5)
    assert count == 4
    # Picture 1 is wrong; in picture 3 no class is likelier than the right one.
    assert {k: (float(s), float(n)) for k, (s, n) in aux.metrics.items()} == {
        "top1": (3, 4),
        "top5": (4, 4),
    }


def test_any_object_s_class_is_right():
    truth = BATCH.instances
    two = truth._replace(labels=truth.labels.at[0, 1].set(2), valid=truth.valid.at[0, 1].set(True))
    says = Says(logits=[[0.0, 2, -1], *LOGITS[1:]])
    for instances, right in ((truth, 2), (two, 3)):
        batch = BATCH._replace(instances=instances)
        _, aux = classifier.loss(says, {"params": {}}, batch, train=False)
        assert aux.metrics["top1"] == (right, 4)


def test_detections_are_the_likeliest_classes_of_whole_pictures():
    found = classifier.detect(
        Says(logits=LOGITS), {}, BATCH.images, options=DetectOptions(n_guesses=2)
    )
    np.testing.assert_array_equal(found.labels[:3], [[1, 2], [2, 1], [3, 1]])
    np.testing.assert_array_equal(found.boxes[:, 0], [[0, 0, 64, 64]] * 3 + [[0, 0, 48, 40]])
    np.testing.assert_allclose(found.scores[0], jax.nn.softmax(jnp.array(LOGITS[0]))[:2], rtol=1e-6)
    sure = DetectOptions(n_guesses=2, score_threshold=0.5)
    found = classifier.detect(Says(logits=LOGITS), {}, BATCH.images, options=sure)
    np.testing.assert_array_equal(found.valid, [[1, 0], [1, 0], [1, 0], [0, 0]])
    assert not found.boxes[3].any() and not found.scores[3].any()


def test_guesses_by_hand():
    scores = jnp.array([[[0.1, 0.5], [0.4, 0.3]]])
    boxes = jnp.arange(16.0).reshape(1, 2, 2, 4) * jnp.array([1.0, 1, 2, 2]).reshape(1, 1, 1, 4)
    found = classifier.guesses(scores, boxes, options=DetectOptions(n_guesses=3))
    np.testing.assert_allclose(found.scores[0], [0.5, 0.4, 0.3])
    np.testing.assert_array_equal(found.labels[0], [2, 1, 2])
    np.testing.assert_array_equal(found.boxes[0], boxes[0, [0, 1, 1], [1, 0, 1]])
    # A box without area is none, however likely.
    flat = boxes.at[0, 0, 1, 2].set(boxes[0, 0, 1, 0])
    found = classifier.guesses(scores, flat, options=DetectOptions(n_guesses=4))
    np.testing.assert_array_equal(found.labels[0], [1, 2, 1, 0])
    np.testing.assert_array_equal(found.valid[0], [1, 1, 1, 0])


def test_dropout_belongs_to_the_image():
    """The same key gives the same loss, wherever the image is and whoever is beside it."""
    model = classifier.Classifier(localizer_cases.Dropping(cases.K))
    variables = cases.drawn(jax.eval_shape(model.init, jax.random.key(0), BATCH.images))

    @jax.jit
    def logits(images, keys):
        return classifier.run(model, variables, images, keys=keys, train=True)[0]

    whole = logits(BATCH.images, BATCH.keys)
    order = jnp.array([2, 0, 3, 1])
    moved = logits(*jax.tree.map(lambda x: x[order], (BATCH.images, BATCH.keys)))
    np.testing.assert_array_equal(moved, whole[order])
    other = logits(BATCH.images, jax.random.split(jax.random.key(9), 4))
    assert np.all(np.any(np.array(other != whole), axis=1))
    same = jax.tree.map(lambda x: x[jnp.zeros(4, int)], BATCH.images)
    assert len(np.unique(np.array(logits(same, BATCH.keys))[:, 0])) == 4


def test_the_head_alone_can_be_trained():
    model = localizer_cases.CLASSIFIERS["classifier: batch norm"]()
    variables = cases.drawn(jax.eval_shape(model.init, jax.random.key(0), BATCH.images))
    options = LossOptions(head_only=True)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_and_stats(params):
        given = variables | {"params": params}
        terms, aux = classifier.loss(model, given, BATCH, train=True, options=options)
        return terms["class"][0], aux.batch_stats

    gradient, stats = gradient_and_stats(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(np.any(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert {path for path, any_ in moved.items() if any_} == {
        "network/fc/bias",
        "network/fc/kernel",
    }
    assert moved == {
        path: classifier.is_trainable(path, last_layer=model.last_layer, options=options)
        for path in moved
    }
