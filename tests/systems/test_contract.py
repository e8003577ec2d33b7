"""What every system is held to; a new one adds its rows to SYSTEMS."""

import functools
from typing import Any, NamedTuple

import chex
import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import localizer_cases
import numpy as np
import optax
import pytest

from jaxdet.features.overfeat import ConvLayer, Design
from jaxdet.geometry import iou as iou_ops
from jaxdet.structures import Batch, Detections
from jaxdet.systems import architectures, classifier, faster_rcnn, localizer, overfeat


class System(NamedTuple):
    """`loss(variables, batch, train=...)`, `detect(variables, images)`, `init(key, images)`."""

    init: Any
    loss: Any
    detect: Any
    batch: Batch  # Of CANVAS, the last picture smaller.
    has_background: bool = True  # Pictures without objects have a loss, too.
    finds: bool = True  # Boxes are learnt.
    rate: float = 1e-3  # Of Adam. Narrow layers of the RPN, which begin at 0.01, die of 3e-3.


def faster_rcnn_system(architecture):
    model = architectures.build(cases.K, architecture)
    return System(
        model.init,
        functools.partial(faster_rcnn.loss, model, options=cases.LOSS),
        functools.partial(faster_rcnn.detect, model, options=cases.DETECT),
        cases.make_batch(),
    )


def classifier_system(make):
    model = make()
    return System(
        model.init,
        functools.partial(classifier.loss, model),
        functools.partial(classifier.detect, model),
        localizer_cases.SINGLE,
        has_background=False,
        finds=False,
    )


def localizer_system(make, batch, options):
    model = make()
    return System(
        model.init,
        functools.partial(localizer.loss, model, options=options),
        functools.partial(localizer.detect, model),
        batch,
        has_background=False,
    )


# Windows of 32 pixels, 8 and 4 apart; squares fill 0.56 to 0.81 of one.
SMALL = Design(
    (ConvLayer(16, 5, pool=2, norm=True), ConvLayer(24, 3, pool=2), ConvLayer(32, 1, pool=2)),
    hidden=(64,),
    size=32,
)


def overfeat_system(**fields):
    model = overfeat.OverFeat(SMALL, cases.K, box_hidden=(128,), dropout=0.0, **fields)
    loss = overfeat.LossOptions(sample_size=48, window_sides=(24.0, 40.0))
    options = overfeat.DetectOptions(
        scales=(1.0,), score_threshold=0.1, merge_threshold=1.0, max_candidates=60
    )
    return System(
        model.init,
        functools.partial(overfeat.loss, model, options=loss),
        functools.partial(overfeat.detect, model, options=options),
        cases.make_batch(),
        rate=3e-3,
    )


SYSTEMS = {
    **{
        f"faster_rcnn: {name}": functools.partial(faster_rcnn_system, architecture)
        for name, architecture in cases.VARIANTS.items()
    },
    **{
        name: functools.partial(classifier_system, make)
        for name, make in localizer_cases.CLASSIFIERS.items()
    },
    **{
        name: functools.partial(localizer_system, *case)
        for name, case in localizer_cases.LOCALIZERS.items()
    },
    "overfeat": overfeat_system,
    "overfeat, class-agnostic": functools.partial(overfeat_system, class_agnostic=True),
}


class Subject(NamedTuple):
    system: System
    variables: Any
    loss_and_gradient: Any  # (variables, batch) -> ((total, (terms, aux)), gradient)
    detect: Any

    @property
    def batch(self) -> Batch:
        return self.system.batch


@pytest.fixture(scope="module", params=SYSTEMS)
def subject(request):
    """A system, compiled; every test below calls the same two compiled functions."""
    chex.clear_trace_counter()
    system = SYSTEMS[request.param]()
    variables = cases.drawn(jax.eval_shape(system.init, jax.random.key(0), system.batch.images))

    def total(params, variables, batch):
        terms, aux = system.loss(variables | {"params": params}, batch, train=True)
        return sum(s / jnp.maximum(n, 1) for s, n in terms.values()), (terms, aux)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss_and_gradient(variables, batch):
        return jax.value_and_grad(total, has_aux=True)(variables["params"], variables, batch)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def detect(variables, images):
        return system.detect(variables, images)

    return Subject(system, variables, loss_and_gradient, detect)


def without_objects(batch: Batch) -> Batch:
    return batch._replace(instances=jax.tree.map(jnp.zeros_like, batch.instances))


def with_crowds_alone(batch: Batch) -> Batch:
    return batch._replace(instances=batch.instances._replace(crowd=batch.instances.valid))


@pytest.mark.parametrize("change", [lambda b: b, without_objects, with_crowds_alone])
def test_loss_is_finite_and_differentiable(subject, change):
    changed = change(subject.batch)
    (loss, (terms, aux)), gradient = subject.loss_and_gradient(subject.variables, changed)
    chex.assert_tree_all_finite((loss, terms, aux, gradient))
    assert (loss > 0) == (subject.system.has_background or changed is subject.batch)
    assert all(total.shape == count.shape == () for total, count in terms.values())
    if changed is subject.batch:
        idle = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
            if not leaf.any()
        ]
        assert not idle, f"no gradient: {idle}"


def test_training_and_validation_losses_have_one_type(subject):
    def shapes(train):
        return jax.eval_shape(functools.partial(subject.system.loss, train=train), *arguments)

    arguments = (subject.variables, subject.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes(True), shapes(False))


def test_statistics_move_in_training_only(subject):
    before = subject.variables.get("batch_stats", {})
    _, (_, aux) = subject.loss_and_gradient(subject.variables, subject.batch)[0]
    assert jax.tree.structure(aux.batch_stats) == jax.tree.structure(before)
    moved = [not np.array_equal(*pair) for pair in pairs(before, aux.batch_stats)]
    assert all(moved)


def pairs(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


def test_detections_keep_the_conventions(subject):
    found = subject.detect(subject.variables, subject.batch.images)
    assert isinstance(found, Detections)
    chex.assert_tree_all_finite(found)
    boxes, scores, labels, valid = map(np.array, found)
    assert boxes.dtype == scores.dtype == np.float32 and labels.dtype == np.int32
    assert valid.any(axis=1).all()
    assert np.all(np.diff(scores, axis=1) <= 0), "best first"
    assert scores.min() >= 0 and scores.max() <= 1
    np.testing.assert_array_equal((labels >= 1) & (labels <= cases.K), valid)
    assert not boxes[~valid].any() and not scores[~valid].any()
    limit = np.array(subject.batch.images.sizes)[:, None, ::-1]
    assert np.all(boxes >= 0) and np.all(boxes[..., 2:] <= limit)


def permuted(tree, order):
    return jax.tree.map(lambda x: x[jnp.array(order)], tree)


def test_place_in_the_batch_changes_nothing(subject):
    order = [2, 3, 1, 0]
    want = permuted(subject.detect(subject.variables, subject.batch.images), order)
    chex.assert_trees_all_equal(
        subject.detect(subject.variables, permuted(subject.batch.images, order)), want
    )


def test_batch_mates_change_nothing(subject):
    want = subject.detect(subject.variables, subject.batch.images)
    images = subject.batch.images
    others = images._replace(
        pixels=images.pixels.at[1:].set(255 - images.pixels[1:]),
        sizes=images.sizes.at[1:].set(jnp.array([[32, 64], [0, 0], [64, 64]], jnp.int32)),
    )
    got = subject.detect(subject.variables, others)
    chex.assert_trees_all_equal(permuted(got, [0]), permuted(want, [0]))
    # The third picture has no pixel: the end of an evaluation.
    chex.assert_tree_all_finite(got)
    assert not got.valid[2].any()


def test_pixels_of_the_padding_change_nothing(subject):
    images = subject.batch.images
    rows, columns = jnp.arange(64)[:, None] >= 40, jnp.arange(64)[None, :] >= 48
    noise = jax.random.randint(jax.random.key(3), (64, 64, 3), 0, 256).astype(jnp.uint8)
    last = jnp.where((rows | columns)[..., None], noise, images.pixels[3])
    noisy = subject.batch._replace(images=images._replace(pixels=images.pixels.at[3].set(last)))
    chex.assert_trees_all_equal(
        subject.detect(subject.variables, noisy.images), subject.detect(subject.variables, images)
    )
    chex.assert_trees_all_equal(
        subject.loss_and_gradient(subject.variables, noisy),
        subject.loss_and_gradient(subject.variables, subject.batch),
    )


def test_padded_objects_change_nothing(subject):
    truth = subject.batch.instances
    rubbish = truth._replace(
        boxes=jnp.where(truth.valid[..., None], truth.boxes, jnp.array([[[9.0, 9, 40, 41]]])),
        labels=jnp.where(truth.valid, truth.labels, 2),
        crowd=truth.crowd | ~truth.valid,
        difficult=truth.difficult | ~truth.valid,
    )
    chex.assert_trees_all_equal(
        subject.loss_and_gradient(subject.variables, subject.batch._replace(instances=rubbish)),
        subject.loss_and_gradient(subject.variables, subject.batch),
    )


def test_vmap_over_single_images(subject):
    alone = jax.tree.map(lambda x: x[:, None], subject.batch.images)
    detect = jax.jit(jax.vmap(functools.partial(subject.system.detect, subject.variables)))
    got = jax.tree.map(lambda x: x[:, 0], detect(alone))
    want = subject.detect(subject.variables, subject.batch.images)
    np.testing.assert_array_equal(got.valid, want.valid)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-4, atol=1e-5)


def wrongly_found(truth, found, image):
    """Objects without their one detection of 50 % or more, and such detections without object."""
    objects = np.array(truth.valid[image] & ~truth.crowd[image])
    sure = np.array(found.valid[image] & (found.scores[image] >= 0.5))
    iou = np.array(iou_ops.pairwise_iou(truth.boxes[image], found.boxes[image])) >= 0.5
    same = np.array(truth.labels[image])[:, None] == np.array(found.labels[image])[None]
    hits = (iou & same)[objects][:, sure]
    inside = iou_ops.pairwise_intersection_over_first(found.boxes[image], truth.boxes[image])
    in_crowd = np.any((np.array(inside) >= 0.5) & np.array(truth.crowd[image])[None], axis=1)[sure]
    return int(np.sum(hits.sum(1) != 1) + np.sum(~hits.any(0) & ~in_crowd))


@pytest.mark.slow
def test_overfits_one_batch(subject):
    schedule = optax.warmup_cosine_decay_schedule(0.0, subject.system.rate, 100, 800)
    tx = optax.adam(schedule)
    variables = jax.jit(subject.system.init)(jax.random.key(0), subject.batch.images)
    update = jax.jit(tx.update)
    state = tx.init(variables["params"])
    apply = jax.jit(optax.apply_updates)
    for step in range(800):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(subject.batch.keys, step)
        (_, (_, aux)), gradient = subject.loss_and_gradient(
            variables, subject.batch._replace(keys=keys)
        )
        updates, state = update(gradient, state)
        params = apply(variables["params"], updates)
        variables = variables | {"params": params}
        if aux.batch_stats:
            variables["batch_stats"] = aux.batch_stats
    found = subject.detect(variables, subject.batch.images)
    truth = subject.batch.instances
    if subject.system.finds:
        assert not any(wrongly_found(truth, found, i) for i in range(4))
    else:
        first = np.argmax(truth.valid & ~truth.crowd, axis=1)
        np.testing.assert_array_equal(found.labels[:, 0], truth.labels[np.arange(4), first])


def test_pictures_that_fill_a_batch_do_not_count(subject):
    """Sums and counts of two halves, each with the other marked as filling, add up."""

    def sums(real):
        batch = subject.batch._replace(
            records=jnp.where(jnp.asarray(real), subject.batch.records, -1)
        )
        terms, aux = subject.loss_and_gradient(subject.variables, batch)[0][1]
        return jax.tree.map(float, (terms, aux.metrics))

    whole, first, second = sums([1, 1, 1, 1]), sums([1, 0, 0, 1]), sums([0, 1, 1, 0])
    parts = jax.tree.map(lambda a, b: a + b, first, second)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), parts, whole)
    assert all(count == 0 for _, count in sums([0, 0, 0, 0])[0].values())
