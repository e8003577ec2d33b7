import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import coders
from jaxdet.proposals import rpn

ALL = rpn.RPNTargets(sample_size=32, positive_fraction=0.5)


def boxes_of(*rows):
    return jnp.array(rows, jnp.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def run_propose():
    """`propose`, compiled once for each set of options."""
    compiled = jax.jit(rpn.propose, static_argnames=("level_sizes", "options"))

    def run(logits, anchors, *, size=(100, 100), level_sizes=None, deltas=None, **options):
        anchors = boxes_of(*anchors)
        return compiled(
            jnp.array(logits, jnp.float32),
            jnp.zeros_like(anchors) if deltas is None else jnp.array(deltas),
            anchors,
            jnp.array(size),
            level_sizes=level_sizes or (len(anchors),),
            options=rpn.ProposalOptions(**options),
        )

    return run


def test_propose_by_hand(run_propose):
    anchors = [[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 9], [50, 50, 60, 60]]
    shift = [0.5, 0.0, 0.0, np.log(2)]  # Half a width to the right, twice the height.
    deltas = [[0.0] * 4, shift, [0.0] * 4, [0.0] * 4]
    boxes, logits, valid = run_propose([1, 3, 2, -4], anchors, deltas=deltas, iou_threshold=0.8)
    # IoU of the first and the third is 0.9: the better one, the third, stays.
    want = [[30, 10, 50, 50], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 0, 0]]
    np.testing.assert_allclose(boxes, want, atol=1e-4)
    np.testing.assert_array_equal(logits, [3, 2, -4, 0])
    np.testing.assert_array_equal(valid, [True, True, True, False])


def test_levels_do_not_suppress_each_other_but_share_the_slots(run_propose):
    anchors = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 40]]
    boxes, logits, valid = run_propose([1, 2, 3, 0], anchors, level_sizes=(2, 2), post_nms=3)
    np.testing.assert_array_equal(logits, [3, 2, 0])
    assert valid.all()
    np.testing.assert_array_equal(boxes[2], anchors[3])


def test_the_best_of_each_level_go_on(run_propose):
    anchors = [[10 * i, 0, 10 * i + 10, 10] for i in range(6)]
    _, logits, valid = run_propose([9, 8, 7, 1, 2, 3], anchors, level_sizes=(3, 3), pre_nms=2)
    # Not 7, though it beats all of the second level.
    np.testing.assert_array_equal(logits, [9, 8, 3, 2])
    assert valid.all()


def test_boxes_are_cut_at_the_picture_and_small_ones_dropped(run_propose):
    anchors = [[-10, -10, 20, 20], [40, 0, 90, 30], [60, 0, 70, 20], [0, 48, 30, 70]]
    boxes, _, valid = run_propose([4, 3, 2, 1], anchors, size=(50, 60), min_side=2.5)
    # The third is outside, the fourth 2 px high: both are gone.
    np.testing.assert_array_equal(boxes[:2], [[0, 0, 20, 20], [40, 0, 60, 30]])
    np.testing.assert_array_equal(valid, [True, True, False, False])


def test_a_picture_of_no_size_has_no_proposals(run_propose):
    boxes, logits, valid = run_propose([1, 2], [[0, 0, 9, 9], [5, 5, 9, 9]], size=(0, 0))
    assert not valid.any() and not boxes.any() and not logits.any()


def test_unlikely_boxes_are_dropped(run_propose):
    apart = [[20 * i, 0, 20 * i + 10, 10] for i in range(3)]
    # Probabilities 0.88, 0.5 and 0.12.
    for threshold, n in [(0.0, 3), (0.2, 2), (0.5, 2), (0.6, 1), (0.95, 0)]:
        _, _, valid = run_propose([2.0, 0.0, -2.0], apart, score_threshold=threshold)
        assert valid.sum() == n, threshold


def test_probabilities_that_are_one_tie(run_propose):
    """In float32; then the first level comes first, as in torchvision."""
    boxes, logits, _ = run_propose(
        [20.0, 30.0, 2.0, 40.0],
        [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]],
        level_sizes=(2, 2),
    )
    np.testing.assert_array_equal(logits, [30, 20, 40, 2])
    np.testing.assert_array_equal(boxes[:, 0], [20, 0, 60, 40])


def test_wild_deltas_stay_finite(run_propose):
    deltas = [[1e30, -1e30, 1e30, 1e30], [0.0, 0.0, -1e30, 0.0]]
    boxes, _, valid = run_propose([1, 2], [[0, 0, 9, 9], [0, 0, 9, 9]], deltas=deltas)
    assert np.isfinite(boxes).all() and not valid.any()


def test_batch_is_image_by_image(rng):
    low = rng.uniform(0, 40, (12, 2))
    outputs = rpn.RPNOutputs(
        jnp.asarray(rng.normal(size=(2, 12)), jnp.float32),
        jnp.asarray(0.1 * rng.normal(size=(2, 12, 4)), jnp.float32),
        jnp.asarray(np.hstack([low, low + 20]), jnp.float32),
        (8, 4),
    )
    sizes, options = jnp.array([[64, 64], [30, 20]]), rpn.ProposalOptions(pre_nms=6, post_nms=5)
    propose = jax.jit(rpn.propose, static_argnames=("level_sizes", "options"))
    got = rpn.propose_batch(outputs, sizes, options=options)
    for i in range(2):
        want = propose(
            outputs.logits[i],
            outputs.deltas[i],
            outputs.anchors,
            sizes[i],
            level_sizes=(8, 4),
            options=options,
        )
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-4)


def naive_iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def naive_loss(logits, deltas, anchors, boxes, objects, regions):
    """Oracle: eq. 1 with every anchor that is not ignored, in plain loops."""
    objectness, distance, count = 0.0, 0.0, 0
    real = [i for i in range(len(boxes)) if objects[i]]
    iou = [[naive_iou(box, anchor) for anchor in anchors] for box in boxes]
    for m, anchor in enumerate(anchors):
        best = max(real, key=lambda i: iou[i][m], default=None)
        overlap = iou[best][m] if real else 0
        is_best = any(0 < iou[i][m] == max(iou[i]) for i in real)
        area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
        if overlap >= 0.7 or is_best:
            objectness += np.log1p(np.exp(-logits[m]))
            for e in np.abs(
                deltas[m] - np.array(coders.encode_boxes(jnp.array(boxes[best]), jnp.array(anchor)))
            ):
                distance += e**2 / 2 * 9 if e < 1 / 9 else e - 1 / 18
        elif overlap < 0.3 and not any(
            regions[i]
            and iou[i][m] * (area + (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]))
            >= 0.5 * area * (1 + iou[i][m])  # Half of the anchor lies in the region.
            for i in range(len(boxes))
        ):
            objectness += np.log1p(np.exp(logits[m]))
        else:
            continue
        count += 1
    return objectness, distance, count


ANCHORS = boxes_of(*[[x, y, x + 16, y + 16] for y in (0, 16, 32) for x in (0, 12, 24, 36)])
TRUTH = boxes_of([1, 0, 17, 15], [20, 22, 40, 44], [30, 0, 60, 14], [0, 0, 0, 0])


@pytest.fixture(scope="module")
def run_loss():
    loss = jax.jit(rpn.rpn_loss, static_argnames="options")

    def run(logits, deltas, objects, regions, *, seed=0, options=ALL, boxes=TRUTH):
        return loss(
            jax.random.key(seed),
            logits,
            deltas,
            ANCHORS,
            boxes,
            jnp.array(objects, bool),
            jnp.array(regions, bool),
            options=options,
        )

    return run


@pytest.fixture
def outputs(rng):
    logits = jnp.asarray(rng.normal(size=12), jnp.float32)
    return logits, jnp.asarray(0.3 * rng.normal(size=(12, 4)), jnp.float32)


@pytest.mark.parametrize(
    "objects, regions",
    [
        ([1, 1, 0, 0], [0, 0, 0, 0]),
        ([1, 1, 1, 0], [0, 0, 0, 0]),
        ([1, 1, 0, 0], [0, 0, 1, 0]),
        ([0, 0, 0, 0], [0, 0, 1, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
    ids=["two", "three", "region", "only region", "nothing"],
)
def test_loss_matches_oracle(run_loss, outputs, objects, regions):
    got = run_loss(*outputs, objects, regions)
    arrays = [np.array(x, np.float64) for x in (*outputs, ANCHORS)]
    objectness, distance, count = naive_loss(*arrays, np.array(TRUTH), objects, regions)
    np.testing.assert_allclose(got["rpn_objectness"], (objectness, count), rtol=1e-5)
    np.testing.assert_allclose(got["rpn_box"], (distance, count), rtol=1e-5)
    assert (distance > 0) == any(objects)


def test_regions_hide_negatives(run_loss, outputs):
    counts = [run_loss(*outputs, [1, 1, 0, 0], [0, 0, r, 0])["rpn_box"][1] for r in (0, 1)]
    # (36, 0) lies in it whole, (24, 0) for more than a half.
    assert counts[0] - counts[1] == 2


def test_sample_has_the_size_asked_for_and_depends_on_the_key(run_loss, outputs):
    small = ALL._replace(sample_size=4)
    terms = [run_loss(*outputs, [1, 1, 0, 0], [0] * 4, seed=s, options=small) for s in range(4)]
    assert {float(t["rpn_box"][1]) for t in terms} == {4.0}
    assert len({float(t["rpn_objectness"][0]) for t in terms}) > 1


def test_loss_gradient(run_loss, outputs):
    objects = [1, 1, 0, 0]

    def total(logits, deltas):
        terms = run_loss(logits, deltas, objects, [0, 0, 1, 0])
        return terms["rpn_objectness"][0] + terms["rpn_box"][0]

    by_logit, by_delta = jax.jit(jax.grad(total, argnums=(0, 1)))(*outputs)
    assert np.isfinite(by_logit).all() and np.isfinite(by_delta).all()
    # Positives want higher logits, negatives lower ones, ignored anchors nothing.
    signs = np.sign(by_logit)
    assert set(signs) == {-1, 0, 1}
    np.testing.assert_array_equal(np.any(by_delta != 0, axis=1), signs < 0)


def test_a_perfect_regression_costs_nothing(run_loss):
    # The second object alone: its best anchor is (24, 32), though the IoU is below 0.7.
    target = coders.encode_boxes(jnp.broadcast_to(TRUTH[1], ANCHORS.shape), ANCHORS)
    terms = run_loss(jnp.zeros(12), target, [0, 1, 0, 0], [0] * 4)
    np.testing.assert_allclose(terms["rpn_box"][0], 0, atol=1e-6)


def test_images_without_objects_have_negatives_only(run_loss, outputs):
    terms = run_loss(*outputs, [0] * 4, [0] * 4, boxes=jnp.zeros((4, 4)))
    want = np.log1p(np.exp(np.array(outputs[0]))).sum()
    np.testing.assert_allclose(terms["rpn_objectness"], (want, 12), rtol=1e-5)
    assert terms["rpn_box"][0] == 0


def test_network_orders_outputs_like_anchors():
    """Anchor i of cell (y, x) of a level reads channel i (4 i .. 4 i + 3) of that cell."""
    model = rpn.RPN(((8.0, 16.0), (32.0, 64.0)), aspect_ratios=(1.0,))
    pyramid = (jnp.zeros((1, 4, 2, 3)), jnp.zeros((1, 2, 1, 3)))
    variables = model.init(jax.random.key(0), pyramid, (16, 8))
    head = variables["params"]["head"]
    # The trunk copies channel 0 of the center; the heads tell their channels apart by bias.
    trunk = head["conv"]["0"]["0"]
    trunk["kernel"] = jnp.zeros_like(trunk["kernel"]).at[1, 1, 0, 0].set(1)
    for name in ("cls_logits", "bbox_pred"):
        layer = head[name]
        layer["kernel"] = jnp.zeros_like(layer["kernel"]).at[0, 0, 0, :].set(10)
        layer["bias"] = jnp.arange(layer["bias"].size, dtype=jnp.float32)
    fine = jnp.zeros((1, 4, 2, 3)).at[0, :, :, 0].set(jnp.arange(8.0).reshape(4, 2))
    coarse = jnp.zeros((1, 2, 1, 3)).at[0, :, :, 0].set(jnp.arange(8.0, 10).reshape(2, 1))
    got = jax.jit(functools.partial(model.apply, canvas=(16, 8)))(variables, (fine, coarse))

    cells, anchors = np.repeat(np.arange(10), 2), np.tile([0, 1], 10)
    np.testing.assert_array_equal(got.logits[0], 10 * cells + anchors)
    want = 10 * cells[:, None] + 4 * anchors[:, None] + np.arange(4)
    np.testing.assert_array_equal(got.deltas[0], want)
    assert tuple(got.level_sizes) == (16, 4)
    # Strides 4 and 8; cell (1, 1) of the fine level, cell (1, 0) of the coarse one.
    np.testing.assert_array_equal(got.anchors[6:8], [[0, 0, 8, 8], [-4, -4, 12, 12]])
    np.testing.assert_array_equal(got.anchors[18:], [[-16, -8, 16, 24], [-32, -24, 32, 40]])


@pytest.mark.parametrize("n_convs", [0, 1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_head_is_two_layers_on_a_small_network(rng, n_convs, dtype):
    """The layers compute in float32, whatever the network does: boxes are rounded by nothing."""
    head = rpn.RPNHead(3, n_convs, dtype)
    pyramid = tuple(jnp.asarray(rng.normal(size=(2, n, 5, 4)), dtype) for n in (6, 3))
    like = jax.eval_shape(head.init, jax.random.key(0), pyramid)
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), like)
    got = head.apply(variables, pyramid)
    params = variables["params"]
    for x, (logits, deltas) in zip(pyramid, got, strict=True):
        for i in range(n_convs):
            layer = params["conv"][str(i)]["0"]
            x = jax.lax.conv_general_dilated(
                x,
                layer["kernel"].astype(dtype),
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + layer["bias"].astype(dtype).reshape(1, 1, 1, -1))
        x = np.asarray(x, np.float64)
        wants = [
            x @ np.asarray(params[name]["kernel"], np.float64)[0, 0]
            + np.asarray(params[name]["bias"])
            for name in ("cls_logits", "bbox_pred")
        ]
        assert logits.dtype == deltas.dtype == jnp.float32
        np.testing.assert_allclose(logits, wants[0].reshape(2, -1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(deltas, wants[1].reshape(2, -1, 4), rtol=1e-4, atol=1e-4)


def test_levels_must_have_equally_many_anchors():
    model = rpn.RPN(((8.0,), (16.0, 32.0)))
    with pytest.raises(ValueError, match="equally many"):
        model.init(jax.random.key(0), (jnp.zeros((1, 2, 2, 3)),) * 2, (8, 8))
