import functools
import inspect
from typing import Any

import chex
import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import predictor
from jaxdet.features.overfeat import ConvLayer, Design
from jaxdet.geometry import iou as iou_ops
from jaxdet.structures import Images
from jaxdet.systems import overfeat
from jaxdet.systems.overfeat import DetectOptions, LossOptions

# Without padding: windows of 32 pixels, 8 apart.
DESIGN = Design(
    (ConvLayer(6, 5, pool=2), ConvLayer(8, 3, pool=2, norm=True), ConvLayer(8, 1, pool=2)),
    (12,),
    32,
)
MODEL = overfeat.OverFeat(DESIGN, cases.K, box_hidden=(12,), dropout=0.0)
BATCH = cases.make_batch()
VARIABLES = cases.drawn(jax.eval_shape(MODEL.init, jax.random.key(0), BATCH.images))


SMALL = overfeat.OverFeat(overfeat.DESIGNS["small"], cases.K, box_hidden=(12,), dropout=0.0)
NETWORKS = {
    "bare": (MODEL, VARIABLES),
    "small": (SMALL, cases.drawn(jax.eval_shape(SMALL.init, jax.random.key(0), BATCH.images))),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fine", [False, True])
def test_looking_at_a_picture_is_looking_at_each_of_its_windows(name, fine):
    """Dense equals sliding, boxes and all: windows are cut out of the pixels by hand."""
    model, variables = NETWORKS[name]
    look = functools.partial(overfeat.look, model, scale=1.0, fine=fine)
    seen = jax.jit(look)(variables, BATCH.images)
    step = 4 if fine else 8
    n = (64 - 32) // step + 1
    assert seen.scores.shape == (4, n, n, cases.K + 1)

    @jax.jit
    def alone(pixels):
        images = Images(pixels, jnp.full((len(pixels), 2), 32, jnp.int32))
        return look(variables, images)

    for i, j in np.ndindex(n, n):
        y, x = i * step, j * step
        np.testing.assert_array_equal(seen.windows[i, j], [x, y, x + 32, y + 32])
        want = alone(BATCH.images.pixels[:3, y : y + 32, x : x + 32])
        np.testing.assert_allclose(seen.scores[:3, i, j], want.scores[:, 0, 0], atol=1e-4)
        moved = want.boxes[:, 0, 0] + np.array([x, y, x, y]).reshape(1, 1, 4)
        np.testing.assert_allclose(seen.boxes[:3, i, j], moved, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.6, 0.4])
def test_training_sees_windows_as_detecting_does(name, scale):
    """Cut out of the picture one by one, or slid over the resized picture."""
    model, variables = NETWORKS[name]
    seen = jax.jit(functools.partial(overfeat.look, model, scale=scale, fine=True))(
        variables, BATCH.images
    )
    windows = jnp.broadcast_to(seen.windows.reshape(-1, 4), (4, seen.windows.size // 4, 4))

    @jax.jit
    def crops(variables):
        pixels = model.apply(variables, BATCH.images, method=model.pixels)
        return model.apply(variables, pixels, windows, train=False, method=model.crops)

    logits, codes = crops(variables)
    np.testing.assert_allclose(
        jax.nn.softmax(logits), seen.scores.reshape(logits.shape), rtol=1e-4, atol=1e-5
    )
    frames = windows[:, :, None, None]
    sides = frames[..., 2:] - frames[..., :2]
    corners = codes.reshape(*codes.shape[:3], 2, 2) * sides + frames[..., :2] + sides / 2
    boxes = jnp.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)
    np.testing.assert_allclose(boxes, seen.boxes.reshape(boxes.shape), rtol=1e-4, atol=1e-3)


def test_windows_of_other_scales_are_in_pixels_of_the_canvas():
    look = functools.partial(overfeat.look, MODEL, VARIABLES, BATCH.images, fine=False)
    seen = jax.jit(functools.partial(look, scale=1.5))()
    np.testing.assert_allclose(seen.windows[0, 0], [0, 0, 32 / 1.5, 32 / 1.5], rtol=1e-5)
    np.testing.assert_allclose(seen.windows[-1, -1], [64 - 32 / 1.5, 64 - 32 / 1.5, 64, 64])
    # Smaller than a window: the rest of it is filled up.
    seen = jax.jit(functools.partial(look, scale=0.25))()
    assert seen.windows.shape == (1, 1, 4)
    np.testing.assert_allclose(seen.windows[0, 0], [0, 0, 128, 128])


def test_what_is_trained():
    def slope(options):
        def total(params):
            variables = VARIABLES | {"params": params}
            terms, _ = overfeat.loss(MODEL, variables, BATCH, train=True, options=options)
            return sum(s / jnp.maximum(n, 1) for s, n in terms.values())

        return jax.jit(jax.grad(total))(VARIABLES["params"])

    boxes = slope(LossOptions(train_classifier=False))
    assert not any(x.any() for x in jax.tree.leaves(boxes["network"]))
    assert all(x.any() for x in jax.tree.leaves(boxes["regressor"]))
    classes = slope(LossOptions(train_boxes=False))
    assert all(x.any() for x in jax.tree.leaves(classes["network"]))
    assert not any(x.any() for x in jax.tree.leaves(classes["regressor"]))
    only_boxes = LossOptions(train_classifier=False)
    _, aux = overfeat.loss(MODEL, VARIABLES, BATCH, train=True, options=only_boxes)
    chex.assert_trees_all_equal(aux.batch_stats, VARIABLES["batch_stats"])
    assert overfeat.is_trainable("regressor/0/kernel", options=only_boxes)
    assert not overfeat.is_trainable("network/features/0/kernel", options=only_boxes)
    nothing = LossOptions(train_classifier=False, train_boxes=False)
    with pytest.raises(ValueError, match="must be on"):
        overfeat.loss(MODEL, VARIABLES, BATCH, train=True, options=nothing)


class Says(overfeat.OverFeat):
    """An OverFeat whose outputs for windows are given."""

    outputs: Any = None

    def setup(self):
        pass

    def crops(self, pixels, windows, *, train, keys=None):
        del pixels, windows, train, keys
        return self.outputs


# Of one picture: around the object, elsewhere, around it again, and half off it.
GAP = LossOptions(sample_size=4, negative_iou=0.2)  # Up to 0.3 a window is left out.
WINDOWS = jnp.array([[0.0, 0, 32, 32], [32, 32, 64, 64], [10, 0, 42, 32], [16, 0, 48, 32]])


def test_loss_by_hand(monkeypatch, rng):
    """An object of class 2 at (8, 8, 28, 28): IoU with the windows 0.39, 0, 0.34 and 0.20."""
    monkeypatch.setattr(overfeat.window_sampling, "sample_windows", lambda *_, **__: WINDOWS)
    batch = cases.make_batch(squares=([(8, 8, 20)], [], [], []), crowds=())
    labels = batch.instances.labels.at[0, 0].set(2)
    batch = batch._replace(instances=batch.instances._replace(labels=labels))
    logits = rng.normal(size=(4, 4, cases.K + 1)).astype(np.float32)
    codes = np.full((4, 4, cases.K, 4), 9.0, np.float32)
    codes[0, :, 1] = 0  # The column of class 2.
    model = Says(DESIGN, cases.K, outputs=(jnp.asarray(logits), jnp.asarray(codes)))
    batch = batch._replace(records=jnp.array([0, -1, -1, -1], jnp.int32))
    terms, aux = overfeat.loss(model, {"params": {}}, batch, train=False, options=GAP)
    # Corners less the window's middle, in its sides of 32 px.
    targets = (
        np.array([[8 - 16, 8 - 16, 28 - 16, 28 - 16], [8 - 26, 8 - 16, 28 - 26, 28 - 16]]) / 32
    )
    np.testing.assert_allclose(terms["box"], (np.sum(targets**2), 2), rtol=1e-5)
    likely = logits[0] - np.log(np.sum(np.exp(logits[0]), axis=-1, keepdims=True))
    entropy = -likely[0, 2] - likely[1, 0] - likely[2, 2]
    np.testing.assert_allclose(terms["class"], (entropy, 3), rtol=1e-5)
    hits = np.sum(np.argmax(logits[0, [0, 2]], axis=-1) == 2)
    assert aux.metrics["window_accuracy"] == (hits, 2)


def test_a_window_around_a_crowd_is_not_background():
    """Of crowds of 20 and 64 px: IoU with the windows 0.39, 0, 0.34, 0.203; all are inside."""
    label = jax.jit(functools.partial(overfeat._label, options=GAP))

    def negative(square):
        batch = cases.make_batch(squares=([square], [], [], []), crowds=((0, 0),))
        matches = label(WINDOWS, jax.tree.map(lambda x: x[0], batch.instances))
        assert not matches.positive.any()
        return matches.negative

    np.testing.assert_array_equal(negative((8, 8, 20)), [False, True, False, False])
    assert not negative((0, 0, 64)).any()


def merge(scores, boxes, **options):
    """One image of 64 x 64, windows all inside."""
    inside, size = jnp.ones(len(scores), bool), jnp.array([64, 64])
    run = functools.partial(overfeat._merge, options=DetectOptions(**options))
    return jax.jit(run)(jnp.asarray(scores), jnp.asarray(boxes), inside, size)


def test_windows_that_agree_add_up():
    """By hand: two windows see class 1 at one place, a third sees class 2 at the border."""
    boxes = np.zeros((4, 2, 4), np.float32)
    boxes[0, 0], boxes[1, 0] = [10, 10, 30, 30], [12, 10, 32, 30]
    boxes[2, 1], boxes[3, 1] = [50, 50, 70, 80], [50, 50, 64, 64]
    scores = np.array(
        [[0.1, 0.9, 0.0], [0.4, 0.6, 0.0], [0.2, 0.0, 0.8], [0.6, 0.0, 0.4]], np.float32
    )
    found = merge(scores, boxes)
    np.testing.assert_allclose(found.boxes[:2], [[11, 10, 31, 30], [50, 50, 64, 64]])
    np.testing.assert_allclose(found.scores[:2], [1.5 / 2.0, 0.8 / 1.3], rtol=1e-6)
    np.testing.assert_array_equal(found.labels[:3], [1, 2, 0])
    assert found.valid.sum() == 2
    apart = merge(scores, boxes, merge_threshold=-1.0)
    assert apart.valid.sum() == 3
    assert merge(scores, boxes, score_threshold=0.3).scores[1] == pytest.approx(1.2 / 1.7)


def test_every_window_that_says_something_is_sure_enough_to_be_drawn():
    """Of the defaults of `DetectOptions` and of `predictor.draw_results`."""
    shown = inspect.signature(predictor.draw_results).parameters["score_threshold"].default
    scores = np.array([[0.49, 0.51, 0.0]], np.float32)
    found = merge(scores, np.array([[[10, 10, 30, 30]] * 2], np.float32), merge_threshold=-1.0)
    assert found.valid.sum() == 1 and found.scores[0] >= shown


def test_more_looks_find_more(monkeypatch):
    """A classifier that knows its windows: scales differ in which objects fill their window."""

    def look(model, variables, images, *, scale, fine):
        step = 4 if fine else 8
        side, last = 32 / scale, 64 - 32 / scale
        start = jnp.arange(0, last + 1e-3, step / scale)
        x, y = jnp.meshgrid(start, start)
        windows = jnp.stack([x, y, x + side, y + side], axis=-1)
        overlap = jax.vmap(lambda b: iou_ops.pairwise_iou(windows.reshape(-1, 4), b))
        iou = overlap(BATCH.instances.boxes).reshape(4, *x.shape, -1)
        best, which = iou.max(axis=-1), iou.argmax(axis=-1)
        take = jax.vmap(lambda rows, index: rows[index])
        labels = jnp.where(best > 0.5, take(BATCH.instances.labels, which), 0)
        boxes = take(BATCH.instances.boxes, which)[..., None, :]
        return overfeat.Windows(jax.nn.one_hot(labels, cases.K + 1), boxes, windows)

    monkeypatch.setattr(overfeat, "look", look)
    model = MODEL.clone(class_agnostic=True)

    def n_found(**options):
        run = functools.partial(overfeat.detect, model, {}, options=DetectOptions(**options))
        found = jax.jit(run)(BATCH.images)
        return int(found.valid.sum())

    # Squares of 18, 20, 20, 20 (a crowd is an object here) and 26 px.
    whole = n_found(scales=(0.5,), fine=False)
    one = n_found(scales=(1.0,))
    assert (whole, one, n_found(scales=(0.5, 1.0, 1.5))) == (0, 1, 5)


def test_the_middle_window_alone(monkeypatch):
    """Of four windows of 20 px, in a picture whose middle is (16, 24)."""
    corners = jnp.array([[[0.0, 0], [20, 0]], [[0, 20], [20, 20]]])
    windows = jnp.concatenate([corners, corners + 20], axis=-1)
    scores = jnp.full((1, 2, 2, cases.K + 1), 0.1).at[..., 1].set(0.9)
    seen = overfeat.Windows(scores, windows[None, :, :, None], windows)
    monkeypatch.setattr(overfeat, "look", lambda *_, **__: seen)
    images = Images(BATCH.images.pixels[:1], jnp.array([[48, 32]]))
    options = DetectOptions(scales=(1.0,), merge_threshold=-1.0)

    def boxes(middle):
        way = options._replace(middle=middle)
        found = overfeat.detect(MODEL.clone(class_agnostic=True), {}, images, options=way)
        return np.asarray(found.boxes[found.valid])

    assert len(boxes(False)) == 4
    np.testing.assert_array_equal(boxes(True), [[0, 20, 20, 40]])


def test_a_picture_in_one_window_is_seen_whatever_its_shape(monkeypatch):
    """Of a strip of 64 x 20 the window's middle is not in the picture."""
    box = jnp.array([[[[[2.0, 2, 18, 60]]]]])
    seen = overfeat.Windows(
        jnp.array([[[[0.1, 0.9, 0.0, 0.0]]]]), box, jnp.array([[[0.0, 0, 64, 64]]])
    )
    monkeypatch.setattr(overfeat, "look", lambda *_, **__: seen)
    model = MODEL.clone(class_agnostic=True)
    options = DetectOptions(scales=(0.5,))

    def n_found(size):
        images = Images(BATCH.images.pixels[:1], jnp.array([size]))
        return int(overfeat.detect(model, {}, images, options=options).valid.sum())

    assert n_found((64, 20)) == n_found((20, 64)) == 1
    assert n_found((0, 0)) == 0
