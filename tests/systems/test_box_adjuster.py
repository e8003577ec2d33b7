import functools
from typing import Any

import chex
import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.features import fpn, resnet
from jaxdet.geometry import iou as iou_ops
from jaxdet.regions.heads import RoIHeads, TwoMLPHead
from jaxdet.systems import box_adjuster
from jaxdet.systems.box_adjuster import BoxAdjuster, LossOptions

BATCH = cases.make_batch()


def halfway(boxes):
    """Half of the way to a box; what is there already stays."""
    target = jnp.array([10.0, 20, 50, 40]).reshape(*[1] * (boxes.ndim - 1), 4)
    return boxes + 0.5 * (target - boxes)


def settle(boxes, **options):
    run = functools.partial(box_adjuster.settle, halfway, **options)
    return jax.jit(run)(jnp.asarray(boxes, jnp.float32))


FAR, NEAR, THERE = [42.0, 20, 50, 40], [14.0, 20, 50, 40], [10.0, 20, 50, 40]


def test_settles_by_hand():
    # 32 px away: 16, 8, 4, 2, 1 px are left; the next step would move it by 0.5.
    got = settle([[FAR, NEAR, THERE]], max_steps=10, tolerance=0.75)
    np.testing.assert_array_equal(got.boxes[0, :, 0], [11, 11, 10])
    np.testing.assert_array_equal(got.settled, [[1, 1, 1]])
    assert got.n_steps == 6  # Five moves, and one that was not made.


def test_settled_boxes_are_fixed_points():
    options = {"max_steps": 10, "tolerance": 0.75}
    first = settle([[FAR, NEAR, THERE]], **options)
    again = settle(first.boxes, **options)
    np.testing.assert_array_equal(again.boxes, first.boxes)
    assert again.n_steps == 1 and again.settled.all()


def test_stops_when_told_to():
    got = settle([[FAR, NEAR]], max_steps=2, tolerance=0.75)
    np.testing.assert_array_equal(got.boxes[0, :, 0], [18, 11])
    np.testing.assert_array_equal(got.settled, [[0, 0]])
    got = settle([[FAR]], max_steps=0, tolerance=0.75)
    np.testing.assert_array_equal(got.boxes[0, 0], FAR)


def test_boxes_stop_each_by_itself(rng):
    starts = rng.uniform(0, 60, (1, 20, 4)).astype(np.float32)
    together = settle(starts, max_steps=9, tolerance=0.5).boxes[0]
    alone = [settle(starts[:, i : i + 1], max_steps=9, tolerance=0.5).boxes[0, 0] for i in range(5)]
    np.testing.assert_array_equal(together[:5], np.stack(alone))


@pytest.mark.parametrize("wrong", [{"max_steps": -1}, {"tolerance": 0.0}], ids=str)
def test_rejects(wrong):
    with pytest.raises(ValueError, match=str(*wrong.values())):
        box_adjuster.settle(
            halfway, jnp.zeros((1, 1, 4)), **{"max_steps": 1, "tolerance": 1.0} | wrong
        )


def test_jitter_stays_within_its_limits():
    boxes = jnp.array([[10.0, 20, 50, 40], [0, 0, 8, 8]])
    run = functools.partial(box_adjuster.jitter, n_candidates=500, shift=0.2, stretch=0.3)
    got = np.array(jax.jit(run)(jax.random.key(0), boxes))
    assert got.shape == (2, 500, 4)
    for box, rows in zip(np.array(boxes), got, strict=True):
        side = box[2:] - box[:2]
        shifts = ((rows[:, :2] + rows[:, 2:]) / 2 - (box[:2] + box[2:]) / 2) / side
        stretches = np.log((rows[:, 2:] - rows[:, :2]) / side)
        for values, limit in ((shifts, 0.2), (stretches, 0.3)):
            assert np.abs(values).max() <= limit + 1e-5
            assert np.abs(values.mean(0)).max() < 0.1 * limit
            np.testing.assert_allclose(values.std(0), limit / np.sqrt(3), rtol=0.1)
    still = box_adjuster.jitter(jax.random.key(0), boxes, n_candidates=1, shift=0.0, stretch=0.0)
    np.testing.assert_allclose(still[:, 0], boxes, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return BoxAdjuster(
        fpn.SingleLevelBackbone(resnet.resnet(18, n_stages=1, width=16)),
        RoIHeads(TwoMLPHead(32), box_adjuster.Deltas(), n_levels=1),
    )


def test_starts_are_clipped(model):
    batch = cases.make_batch()
    variables = jax.eval_shape(model.init, jax.random.key(0), batch.images)
    far = jnp.broadcast_to(jnp.array([-9.0, 5, 90, 50]), (4, 1, 4))
    adjust = functools.partial(box_adjuster.adjust, model, max_steps=0)
    got = jax.jit(adjust)(cases.drawn(variables), batch.images, far)
    # The last picture has 40 x 48.
    np.testing.assert_array_equal(got.boxes[:, 0], [[0, 5, 64, 50]] * 3 + [[0, 5, 48, 40]])


@pytest.fixture(scope="module")
def loss_and_gradient(model):
    def total(params, variables, batch):
        terms, aux = box_adjuster.loss(
            model, variables | {"params": params}, batch, train=True, options=LossOptions(8)
        )
        return terms["box"][0] / jnp.maximum(terms["box"][1], 1), (terms, aux)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def test_loss_is_finite_and_differentiable(model, loss_and_gradient):
    variables = cases.drawn(jax.eval_shape(model.init, jax.random.key(0), BATCH.images))
    (_, (terms, aux)), gradient = loss_and_gradient(variables["params"], variables, BATCH)
    chex.assert_tree_all_finite((terms, aux, gradient))
    # Four objects that count; the crowd does not.
    assert terms["box"][1] == 4 * 8
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    empty = BATCH._replace(instances=jax.tree.map(jnp.zeros_like, BATCH.instances))
    (loss, _), gradient = loss_and_gradient(variables["params"], variables, empty)
    assert loss == 0
    chex.assert_tree_all_finite(gradient)


def test_a_picture_that_only_fills_the_batch_has_nothing_to_learn_from(model, loss_and_gradient):
    """As if its objects were not there; pixels are in the statistics of norms all the same."""
    variables = cases.drawn(jax.eval_shape(model.init, jax.random.key(0), BATCH.images))
    filler = BATCH._replace(records=BATCH.records.at[0].set(-1))
    truth = BATCH.instances
    bare = BATCH._replace(instances=truth._replace(valid=truth.valid.at[0].set(False)))
    got, want = (loss_and_gradient(variables["params"], variables, x) for x in (filler, bare))
    chex.assert_trees_all_equal(got, want)
    (_, (terms, _)), _ = loss_and_gradient(variables["params"], variables, BATCH)
    assert 0 < want[0][1][0]["box"][1] < terms["box"][1]


class Knows(BoxAdjuster):
    """Moves every box onto (10, 20, 50, 40), but for errors of its codes."""

    backbone: Any = None
    roi_heads: Any = None
    errors: tuple[float, ...] = ()

    def maps(self, images, *, train):
        del images, train
        return ()

    def deltas(self, pyramid, boxes, images):
        """R-CNN's codes, weighted with 10, 10, 5, 5."""
        del pyramid, images
        low, high = boxes[..., :2], boxes[..., 2:]
        size = high - low
        shift = 10 * (jnp.array([[[30.0, 30]]]) - (low + high) / 2) / size
        stretch = 5 * jnp.log(jnp.array([[[40.0, 20]]]) / size)
        return jnp.concatenate([shift, stretch], axis=-1) + jnp.array(self.errors)[None, None]


def test_loss_by_hand():
    """Smooth L1 of two errors, below and above beta; wherever the candidates were drawn."""
    boxes = jnp.zeros((4, 4, 4)).at[0, 0].set(jnp.array([10.0, 20, 50, 40]))
    truth = cases.make_batch(squares=([(10, 20, 20)], [], [], []), crowds=()).instances
    batch = BATCH._replace(instances=truth._replace(boxes=boxes))
    for errors, want in (((0.0,) * 4, 0.0), ((0.05, 0.0, -1.0, 0.0), 4.5 * 0.05**2 + 1 - 1 / 18)):
        terms, aux = box_adjuster.loss(
            Knows(errors=errors), {"params": {}}, batch, train=False, options=LossOptions(6)
        )
        np.testing.assert_allclose(terms["box"], (6 * want, 6), rtol=1e-3, atol=1e-4)
        after, before = (float(aux.metrics[f"iou_{when}"][0]) for when in ("after", "before"))
        assert before < 5.5
        # The last error makes the box narrower, by exp(-1 / 5); the first moves it by 0.005.
        assert after == pytest.approx(6 if want == 0 else 6 * np.exp(-0.2), rel=1e-3)


def test_needs_keys(model):
    with pytest.raises(ValueError, match="keys"):
        box_adjuster.loss(model, {}, BATCH._replace(keys=None), train=True)


def mean_iou(boxes):
    truth = BATCH.instances
    counts = truth.valid & ~truth.crowd
    overlaps = np.array(iou_ops.iou(jnp.asarray(boxes), truth.boxes))
    return overlaps[np.array(counts)].mean()


@pytest.mark.slow
def test_iterations_bring_boxes_nearer(model, loss_and_gradient):
    """Overfits the batch; then more steps give a larger IoU, up to a point."""
    variables = jax.jit(model.init)(jax.random.key(0), BATCH.images)
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 400))
    state, update = tx.init(variables["params"]), jax.jit(tx.update)
    for step in range(400):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(BATCH.keys, step)
        (_, (_, aux)), gradient = loss_and_gradient(
            variables["params"], variables, BATCH._replace(keys=keys)
        )
        updates, state = update(gradient, state)
        params = optax.apply_updates(variables["params"], updates)
        variables = {"params": params, "batch_stats": aux.batch_stats}
    starts = jax.vmap(
        functools.partial(box_adjuster.jitter, n_candidates=1, shift=0.4, stretch=0.4)
    )(jax.random.split(jax.random.key(5), 4), BATCH.instances.boxes)[:, :, 0]
    found = [
        mean_iou(box_adjuster.adjust(model, variables, BATCH.images, starts, max_steps=n).boxes)
        for n in (0, 1, 2, 4)
    ]
    assert found[0] + 0.1 < found[1] < found[2] + 0.02 and found[3] > max(found[1], 0.8), found
