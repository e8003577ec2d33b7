import functools
from typing import Any

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import localizer_cases
import numpy as np
import pytest

from jaxdet.features.networks import Network
from jaxdet.geometry import coders
from jaxdet.regions.heads import BoxOutputs
from jaxdet.systems import localizer
from jaxdet.systems.localizer import CODE_WEIGHTS, Architecture, LossOptions

SINGLE, DOUBLE = localizer_cases.SINGLE, localizer_cases.DOUBLE


class Says(localizer.Localizer):
    """A localizer whose outputs are given."""

    network: Any = None
    box_head: Any = None
    num_classes: int = cases.K
    outputs: Any = None

    def setup(self):
        pass

    def maps(self, images, *, train):
        del train
        return (images.pixels.astype(jnp.float32),)

    def head(self, maps, *, train):
        del maps, train
        return self.outputs


def says(logits, deltas):
    return Says(outputs=BoxOutputs(*(jnp.asarray(x, jnp.float32) for x in (logits, deltas))))


def loss(outputs, batch, **options):
    run = functools.partial(localizer.loss, train=False, options=LossOptions(**options))
    terms, aux = jax.jit(lambda o, b: run(says(*o), {"params": {}}, b))(outputs, batch)
    return jax.tree.map(float, (terms, aux.metrics))


def detect(outputs, images):
    return jax.jit(lambda o, x: localizer.detect(says(*o), {}, x))(outputs, images)


def encode(box):
    """From the frame of the canvas, in plain Python."""
    x1, y1, x2, y2 = map(float, box)
    height, width = cases.CANVAS
    dx, dy = ((x1 + x2) / 2 - width / 2) / width, ((y1 + y2) / 2 - height / 2) / height
    numbers = (dx, dy, np.log((x2 - x1) / width), np.log((y2 - y1) / height))
    return np.multiply(numbers, CODE_WEIGHTS)


def test_loss_by_hand(rng):
    """One box for all classes; the object of picture 1 stands behind a crowd."""
    logits, deltas = rng.normal(size=(4, 1, 3)), rng.normal(size=(4, 1, 1, 4))
    truth = SINGLE.instances
    squares = entropies = hits = 0
    for i, row in enumerate([0, 1, 0, 0]):
        target = encode(truth.boxes[i, row])
        squares += np.sum((deltas[i, 0, 0] - target) ** 2)
        label = int(truth.labels[i, row]) - 1
        entropies += np.log(np.sum(np.exp(logits[i, 0]))) - logits[i, 0, label]
        hits += np.argmax(logits[i, 0]) == label
    terms, metrics = loss((logits, deltas), SINGLE)
    np.testing.assert_allclose(terms["box"], (squares, 4), rtol=1e-4)
    np.testing.assert_allclose(terms["class"], (entropies, 4), rtol=1e-5)
    assert metrics["accuracy"] == (hits, 4)


def perfect(batch, order):
    """Logits and deltas that are right; slot `order[i]` answers for object i. A box a class."""
    truth = batch.instances
    n = len(order)
    logits, deltas = np.zeros((4, n, cases.K)), np.full((4, n, cases.K, 4), 9.0)
    for i in range(4):
        rows = np.flatnonzero(truth.valid[i] & ~truth.crowd[i])
        for row, slot in zip(rows, order, strict=True):
            label = int(truth.labels[i, row]) - 1
            logits[i, slot, label] = 50
            deltas[i, slot, label] = encode(truth.boxes[i, row])
    return logits, deltas


@pytest.mark.parametrize("batch, order", [(SINGLE, [0]), (DOUBLE, [0, 1])], ids=["one", "two"])
def test_what_is_right_costs_nothing_and_is_detected(batch, order):
    right = perfect(batch, order)
    terms, metrics = loss(right, batch)
    count = 4.0 * len(order)
    for name in ("class", "box"):
        assert terms[name] == (pytest.approx(0, abs=1e-4), count)
    assert metrics["accuracy"] == (count, count)
    assert metrics["iou"] == (pytest.approx(count, rel=1e-4), count)
    found, truth = (
        jax.tree.map(np.array, tree) for tree in (detect(right, batch.images), batch.instances)
    )
    for i in range(4):
        rows = np.flatnonzero(truth.valid[i] & ~truth.crowd[i])
        got = {(a, *np.round(b)) for a, b in zip(found.labels[i], found.boxes[i], strict=True)}
        want = {(truth.labels[i, r], *truth.boxes[i, r]) for r in rows}
        assert want <= got
        assert np.all(found.scores[i, : len(order)] > 0.99)


def test_order_or_the_best_assignment():
    swapped = perfect(DOUBLE, [1, 0])
    in_order, _ = loss(swapped, DOUBLE)
    best, metrics = loss(swapped, DOUBLE, optimal=True)
    assert in_order["box"][0] > 10 and in_order["class"][0] > 100
    assert best["box"][0] == pytest.approx(0, abs=1e-4) == best["class"][0]
    assert metrics["accuracy"] == (8, 8)


def test_order_is_from_left_to_right_whatever_the_rows():
    right = perfect(DOUBLE, [0, 1])
    rows = jax.tree.map(lambda x: x[:, ::-1], DOUBLE.instances)
    terms, _ = loss(right, DOUBLE._replace(instances=rows))
    assert terms["box"] == (pytest.approx(0, abs=1e-4), 8)


def test_objects_beyond_the_boxes_are_left_out():
    for optimal in (False, True):
        terms, _ = loss((np.zeros((4, 1, 3)), np.zeros((4, 1, 1, 4))), DOUBLE, optimal=optimal)
        assert terms["box"][1] == terms["class"][1] == 4


def test_boxes_of_classes_learn_from_their_own_objects_only():
    def total(deltas):
        terms, _ = localizer.loss(
            says(np.zeros((4, 1, 3)), deltas), {"params": {}}, SINGLE, train=False
        )
        return terms["box"][0]

    gradient = np.array(jax.jit(jax.grad(total))(jnp.zeros((4, 1, 3, 4))))
    labels = np.array(SINGLE.instances.labels)[np.arange(4), [0, 1, 0, 0]] - 1
    for i in range(4):
        moved = np.any(gradient[i, 0] != 0, axis=-1)
        np.testing.assert_array_equal(np.flatnonzero(moved), [labels[i]])


def test_zero_codes_are_the_whole_canvas_and_boxes_end_at_the_pictures_border():
    found = detect((np.zeros((4, 1, 3)), np.zeros((4, 1, 1, 4))), SINGLE.images)
    np.testing.assert_allclose(found.boxes[3, 0], [0, 0, 48, 40], atol=1e-4)
    right = np.zeros((4, 1, 1, 4))
    right[..., 0] = 1  # A quarter of the canvas.
    found = detect((np.zeros((4, 1, 3)), right), SINGLE.images)
    np.testing.assert_allclose(found.boxes[3, 0], [16, 0, 48, 40], atol=1e-4)


STAGES = {
    "classes": LossOptions(train_boxes=False),
    "boxes": LossOptions(train_classifier=False),
}


@pytest.fixture(scope="module")
def gradients():
    """Of both stages: the terms, the gradient and the statistics after the batch."""
    model = localizer_cases.localizer_of()
    variables = cases.drawn(jax.eval_shape(model.init, jax.random.key(0), SINGLE.images))

    def run(options):
        def total(params):
            terms, aux = localizer.loss(
                model, variables | {"params": params}, SINGLE, train=True, options=options
            )
            return sum(s for s, _ in terms.values()), (terms, aux.batch_stats)

        return jax.grad(total, has_aux=True)(variables["params"])

    return variables, {name: jax.jit(functools.partial(run, o))() for name, o in STAGES.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_train_their_part(gradients, stage):
    variables, found = gradients
    gradient, (terms, stats) = found[stage]
    assert terms.keys() == {"class" if stage == "classes" else "box"}
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(np.any(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert moved == {path: localizer.is_trainable(path, options=STAGES[stage]) for path in moved}
    assert any(moved.values()) and not all(moved.values())
    kept = jax.tree.map(np.array_equal, stats, variables["batch_stats"])
    assert set(jax.tree.leaves(kept)) == {stage == "boxes"}


@pytest.mark.parametrize("attached", ["convolutions", "vector"])
@pytest.mark.parametrize("agnostic", [True, False])
def test_numbers_of_outputs(attached, agnostic):
    spec = Architecture(
        Network(width=8, n_stages=1), attached, class_agnostic=agnostic, n_boxes=2, features=6
    )
    model = localizer.build(5, spec)
    images = jax.eval_shape(lambda: SINGLE.images)
    (logits, deltas), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (4, 2, 5) and deltas.shape == (4, 2, 1 if agnostic else 5, 4)
    first = variables["params"]["box_head"]["fc1"]["kernel"]
    assert first.shape == (8 if attached == "vector" else 7 * 7 * 8, 6)


def test_codes_are_rcnns():
    box, frame = jnp.array([[10.0, 4, 30, 20]]), jnp.array([[0.0, 0, 64, 64]])
    want = coders.encode_boxes(box, frame, weights=CODE_WEIGHTS)[0]
    np.testing.assert_allclose(encode(box[0]), want, rtol=1e-5)
