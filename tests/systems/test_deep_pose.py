import functools

import chex
import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.features.norm import GroupNorm
from jaxdet.features.vgg import VGGFeatures
from jaxdet.metrics import pose
from jaxdet.metrics.pose import Errors
from jaxdet.systems import deep_pose
from jaxdet.systems.deep_pose import DeepPose, LossOptions, PoseRegressor

J = 3


def network(dropout):
    backbone = VGGFeatures(((16,), (16,)), norm=GroupNorm)
    return PoseRegressor(backbone, J, hidden=(24,), dropout=dropout, pool=2)


MODEL = DeepPose((network(0.6), network(0.0)), torso=(0, 2), crop_size=16, box_context=1.2)


def make_batch():
    """The squares of the shared batch: middle, upper right corner, and left lower corner.

    Corners of the second picture's second object are not labelled.
    """
    batch = cases.make_batch()
    x1, y1, x2, y2 = np.moveaxis(np.array(batch.instances.boxes), -1, 0)
    points = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2, y1, x1, y2], -1)
    points = points.reshape(*x1.shape, J, 2)
    state = np.full((*x1.shape, J, 1), 2.0) * np.array(batch.instances.valid)[..., None, None]
    state[1, 1, 1:] = 0
    keypoints = np.concatenate([points, state], -1) * (state > 0)
    instances = batch.instances._replace(keypoints=jnp.asarray(keypoints, jnp.float32))
    return batch._replace(instances=instances)


BATCH = make_batch()
VARIABLES = cases.drawn(jax.eval_shape(MODEL.init, jax.random.key(0), BATCH.images))


@functools.cache
def gradient():
    def total(params, batch):
        terms, aux = deep_pose.loss(MODEL, {"params": params}, batch, train=True)
        return sum(s / jnp.maximum(n, 1) for s, n in terms.values()), (terms, aux)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def predict(batch=BATCH):
    return _predict(VARIABLES, batch.images, batch.instances.boxes, batch.instances.valid)


_predict = jax.jit(functools.partial(deep_pose.predict, MODEL))


def permuted(tree, order):
    return jax.tree.map(lambda x: x[jnp.array(order)], tree)


def test_loss_is_finite_and_trains_everything():
    (value, (terms, aux)), slope = gradient()(VARIABLES["params"], BATCH)
    chex.assert_tree_all_finite((value, terms, aux, slope))
    assert value > 0 and terms.keys() == {"stage1", "stage2"}
    idle = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slope)
        if not leaf.any()
    ]
    assert not idle, f"no gradient: {idle}"


def test_counts_are_of_labelled_joints():
    """Objects of the four pictures: 2, 1 and a crowd, none, 1; the second's has one joint."""
    terms, _ = gradient()(VARIABLES["params"], BATCH)[0][1]
    assert terms["stage1"][1] == 6 + 1 + 0 + 3
    # Of each crop one joint, and each joint once.
    assert terms["stage2"][1] == 6 + 1 + 0 + 3
    few = LossOptions(stages=(1,), sample_size=2)
    run = functools.partial(deep_pose.loss, MODEL, train=False, options=few)
    terms, _ = jax.jit(run)(VARIABLES, BATCH)
    assert terms.keys() == {"stage2"} and terms["stage2"][1] == 2 + 1 + 0 + 2


def test_no_objects():
    empty = BATCH._replace(instances=jax.tree.map(jnp.zeros_like, BATCH.instances))
    (value, rest), slope = gradient()(VARIABLES["params"], empty)
    chex.assert_tree_all_finite((rest, slope))
    assert value == 0


def test_pictures_that_fill_a_batch_do_not_count():
    def sums(records):
        batch = BATCH._replace(records=jnp.array(records, jnp.int32))
        return jax.tree.map(float, gradient()(VARIABLES["params"], batch)[0][1])

    parts = jax.tree.map(lambda a, b: a + b, sums([0, -1, -1, 3]), sums([-1, 1, 2, -1]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, parts, sums([0, 1, 2, 3]))


def test_padded_objects_change_nothing():
    truth = BATCH.instances
    free = ~truth.valid[..., None]
    rubbish = BATCH._replace(
        instances=truth._replace(
            boxes=jnp.where(free, jnp.array([[[9.0, 9, 40, 41]]]), truth.boxes),
            keypoints=jnp.where(free[..., None], 7.0, truth.keypoints),
        )
    )
    chex.assert_trees_all_equal(
        gradient()(VARIABLES["params"], rubbish), gradient()(VARIABLES["params"], BATCH)
    )
    chex.assert_trees_all_equal(predict(rubbish), predict())


def test_place_in_the_batch_and_batch_mates_change_nothing():
    order = [2, 3, 1, 0]
    chex.assert_trees_all_equal(predict(permuted(BATCH, order)), permuted(predict(), order))
    others = BATCH.images._replace(pixels=BATCH.images.pixels.at[1:].add(77))
    got = predict(BATCH._replace(images=others))
    chex.assert_trees_all_equal(permuted(got, [0]), permuted(predict(), [0]))


def test_pixels_of_the_padding_change_nothing():
    pixels = BATCH.images.pixels.at[3, 40:].set(99).at[3, :, 48:].set(99)
    noisy = BATCH._replace(images=BATCH.images._replace(pixels=pixels))
    chex.assert_trees_all_equal(predict(noisy), predict())


def test_poses_keep_the_conventions():
    found = predict()
    assert found.joints.shape == (4, 4, 2, J, 2) and found.joints.dtype == jnp.float32
    chex.assert_tree_all_finite(found)
    assert not found.joints[~np.array(found.valid)].any()


def test_vmap_over_single_images():
    parts = BATCH.images, BATCH.instances.boxes, BATCH.instances.valid
    alone = jax.tree.map(lambda x: x[:, None], parts)
    got = jax.jit(jax.vmap(functools.partial(deep_pose.predict, MODEL, VARIABLES)))(*alone)
    np.testing.assert_allclose(got.joints[:, 0], predict().joints, rtol=1e-3, atol=1e-3)


class Oracle(DeepPose):
    """Sees one joint after the other exactly: what crops are asked for is all that matters."""

    def regress(self, stage, pixels, boxes, *, train, keys=None):
        """Every joint is at (30, 20)."""
        del stage, pixels, keys, train
        centers, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        code = (jnp.array([[[30.0, 20.0]]]) - centers) / sizes
        return jnp.broadcast_to(code[..., None, :], (*boxes.shape[:2], J, 2))


def test_frames_and_codes_belong_together():
    model = Oracle(MODEL.stages, torso=(0, 2), box_context=2.0)
    found = deep_pose.predict(model, {}, BATCH.images, BATCH.instances.boxes, BATCH.instances.valid)
    want = np.broadcast_to([30.0, 20.0], found.joints.shape)[np.array(found.valid)]
    np.testing.assert_allclose(found.joints[np.array(found.valid)], want, atol=1e-4)


@pytest.mark.parametrize(
    "stage, want",
    [
        # The box's crop is 40 x 80 px; errors of (4, 8), none and (10, 0) px.
        (0, [(4 / 40) ** 2 + (8 / 80) ** 2, 0.0, (10 / 40) ** 2]),
        # Joints 0 and 2 are 10 px apart, so crops of joints have sides of 20 px.
        (1, [(4 / 20) ** 2 + (8 / 20) ** 2, 0.0, (10 / 20) ** 2]),
    ],
)
def test_loss_by_hand(stage, want):
    """The oracle says (30, 20) of every joint, in whichever crop."""
    model = Oracle((None, None), torso=(0, 2), box_context=2.0, joint_context=2.0)
    keypoints = (
        jnp.zeros((4, 4, J, 3)).at[0, 0].set(jnp.array([[34.0, 12, 2], [30, 20, 1], [40, 20, 2]]))
    )
    truth = cases.make_batch(squares=([(10, 10, 20)], [], [], []), crowds=()).instances
    truth = truth._replace(
        keypoints=keypoints, boxes=truth.boxes.at[0, 0].set(jnp.array([10.0, 10, 30, 50]))
    )
    terms, aux = deep_pose.loss(
        model,
        {"params": {}},
        BATCH._replace(instances=truth),
        train=False,
        options=LossOptions((stage,), sample_size=4),
    )
    name = f"{stage + 1}"
    np.testing.assert_allclose(terms[f"stage{name}"], (np.sum(want), J), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics[f"error{name}"], (np.sum(np.sqrt(want)), J), rtol=1e-4)


def test_later_stages_crop_around_their_joint_and_read_their_own_output():
    """A stage that says (k / 8, 0) of joint k in every crop moves joint k by k / 8 of a side."""

    class Fixed(Oracle):
        def regress(self, stage, pixels, boxes, *, train, keys=None):
            if stage == 0:
                code = jnp.array([[0.0, 0.0], [0.25, 0.0], [0.0, 0.5]])
            else:
                code = jnp.stack([jnp.arange(J) / 8, jnp.zeros(J)], axis=-1)
            return jnp.broadcast_to(code[None, None], (*boxes.shape[:2], J, 2))

    boxes = jnp.array([[[10.0, 10, 30, 50]]])
    model = Fixed((None, None), torso=(0, 2), joint_context=2.0)
    images = BATCH.images._replace(pixels=BATCH.images.pixels[:1], sizes=BATCH.images.sizes[:1])
    first, second = deep_pose.predict(model, {}, images, boxes, jnp.ones((1, 1), bool)).joints[0, 0]
    np.testing.assert_allclose(first, [[20, 30], [25, 30], [20, 50]], atol=1e-4)
    # The diameter is 20, so crops are 40 wide.
    np.testing.assert_allclose(second, [[20, 30], [25 + 5, 30], [20 + 10, 50]], atol=1e-4)


def test_crops_of_a_stage_are_displaced_as_the_stage_before_errs():
    """By hand: where the crop is known, its target is -error / context."""
    errors = Errors(((0.1, -0.2), (0.3, 0.0), (0.0, 0.0)), ((0.0, 0.0),) * J)
    options = LossOptions(errors=(errors,), sample_size=16)
    truth = jax.tree.map(lambda x: x[0], BATCH.instances)
    crops = deep_pose._sample(
        jax.random.key(0), truth, model=MODEL.clone(joint_context=2.0), stage=1, options=options
    )
    assert crops.counted.sum() == 6
    for counted, target in zip(crops.counted, crops.targets, strict=True):
        if counted.any():
            joint = int(np.argmax(counted))
            np.testing.assert_allclose(target[joint], -np.array(errors.mean[joint]) / 2, atol=1e-5)
    sides = crops.frames[:, 2:] - crops.frames[:, :2]
    # Objects of 20 and 26 px: from the middle to a corner 14.1 and 18.4.
    sides = np.array(sides)[np.array(crops.counted).any(axis=1)]
    np.testing.assert_allclose(np.unique(sides.round(2)), [28.28, 36.77])


def test_displacements_have_the_spread_asked_for():
    errors = Errors(((0.5, 0.0),) * J, ((0.2, 0.05),) * J)
    options = LossOptions(errors=(errors,), sample_size=6)
    truth = jax.tree.map(lambda x: x[0], BATCH.instances)
    sample = functools.partial(deep_pose._sample, model=MODEL, stage=1, options=options)
    crops = jax.vmap(sample, in_axes=(0, None))(jax.random.split(jax.random.key(1), 400), truth)
    targets = np.array(crops.targets)[np.array(crops.counted)]
    assert len(targets) == 2400
    np.testing.assert_allclose(targets.mean(0), [-0.5, 0], atol=0.02)
    np.testing.assert_allclose(targets.std(0), [0.2, 0.05], rtol=0.1)


def test_a_torso_that_shrank_is_a_tenth_of_the_diagonal():
    """A box of 30 x 40, and one of nothing."""
    keypoints = jnp.zeros((2, 2, 3)).at[..., 2].set(2)
    boxes = jnp.array([[0.0, 0, 30, 40], [0, 0, 0, 0]])
    np.testing.assert_allclose(deep_pose.diameters(keypoints, boxes, (0, 1)), [5, 1])


def test_diameter_is_the_torsos_or_half_the_diagonal():
    keypoints = jnp.array([[[0.0, 0, 2], [9, 9, 2], [3, 4, 1]], [[0, 0, 2], [9, 9, 2], [3, 4, 0]]])
    boxes = jnp.array([[0.0, 0, 30, 40]] * 2)
    np.testing.assert_allclose(deep_pose.diameters(keypoints, boxes, (0, 2)), [5, 25])


def test_parameters_of_a_stage():
    paths = jax.tree_util.tree_leaves_with_path(VARIABLES["params"])
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    chosen = [name for name in names if deep_pose.trained_by(name, stages=(1,))]
    assert 2 * len(chosen) == len(names)
    assert all(name.startswith("stages_1/") for name in chosen)


def test_errors_of_other_joints_and_batches_without_keypoints():
    options = LossOptions(errors=(Errors(((0.0, 0.0),), ((0.1, 0.1),)),))
    with pytest.raises(ValueError, match="3 joints"):
        deep_pose._errors_of(0, J, options)
    bare = BATCH._replace(instances=BATCH.instances._replace(keypoints=None))
    with pytest.raises(ValueError, match="keypoints"):
        deep_pose.loss(MODEL, VARIABLES, bare, train=False)


@pytest.mark.slow
def test_overfits_one_batch_and_later_stages_are_closer():
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, 400))
    params = jax.jit(MODEL.init)(jax.random.key(0), BATCH.images)["params"]
    state, update, apply = tx.init(params), jax.jit(tx.update), jax.jit(optax.apply_updates)
    for step in range(400):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(BATCH.keys, step)
        _, slope = gradient()(params, BATCH._replace(keys=keys))
        updates, state = update(slope, state)
        params = apply(params, updates)
    truth = BATCH.instances
    found = _predict({"params": params}, BATCH.images, truth.boxes, truth.valid)
    shares = [
        float(pose.mean(pose.pck(joints, truth.keypoints, truth.boxes, threshold=0.1)))
        for joints in jnp.moveaxis(found.joints, 2, 0)
    ]
    assert shares[-1] == 1
    off = np.linalg.norm(found.joints - truth.keypoints[:, :, None, :, :2], axis=-1)
    labelled = np.broadcast_to(truth.keypoints[:, :, None, :, 2] > 0, off.shape)
    by_stage = np.mean(off, axis=(0, 1, 3), where=labelled)
    assert by_stage[-1] < by_stage[0]
