import dataclasses
import functools

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.structures import Images
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.systems.faster_rcnn import DetectOptions


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def shapes(model, canvas=(64, 64)):
    images = Images(
        jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    return jax.eval_shape(model.init, jax.random.key(0), images)


def test_an_extra_level_is_for_proposals_only():
    architecture = dataclasses.replace(cases.PYRAMID, anchor_sizes=((8.0,), (16.0,), (32.0,)))
    model = architectures.build(2, architecture)
    variables = shapes(model)
    images = jax.eval_shape(lambda: cases.make_batch().images)
    pyramid = jax.eval_shape(functools.partial(faster_rcnn.features, model), variables, images)
    assert [m.shape[1:3] for m in pyramid] == [(16, 16), (8, 8), (4, 4)]
    assert model.roi_heads.n_levels == 2


def test_canvases_must_be_multiples_of_the_strides():
    with pytest.raises(ValueError, match="canvas"):
        shapes(architectures.build(2, cases.PYRAMID), canvas=(60, 64))


@pytest.fixture(scope="module")
def run_select():
    select = jax.jit(faster_rcnn.select_detections, static_argnames="options")

    def run(scores, boxes, **options):
        """Boxes are those of all classes."""
        scores = jnp.array(scores, jnp.float32)
        boxes = jnp.broadcast_to(jnp.array(boxes, jnp.float32)[:, None], (*scores.shape, 4))
        defaults = {"max_detections": 4, "max_candidates": 100}
        return select(scores, boxes, options=DetectOptions(**defaults | options))

    return run


BOXES = [[0, 0, 10, 10], [0, 0, 10, 8], [30, 30, 40, 40]]


def test_select_by_hand(run_select):
    scores = [[0.1, 0.6, 0.3], [0.05, 0.7, 0.25], [0.95, 0.01, 0.04]]
    found = run_select(scores, BOXES)
    # Class 1: the second box drops the first; class 2: the first drops the second.
    np.testing.assert_array_equal(found.labels, [1, 2, 0, 0])
    np.testing.assert_allclose(found.scores, [0.7, 0.3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.boxes[:2], [BOXES[1], BOXES[0]])
    np.testing.assert_array_equal(found.valid, [True, True, False, False])
    assert not found.boxes[2:].any()


def test_each_class_has_its_own_box():
    boxes = jnp.arange(24.0).reshape(2, 3, 4) * jnp.array([[[0.0, 0, 1, 1]]])
    scores = jnp.array([[0.0, 0.9, 0.1], [0.0, 0.2, 0.8]])
    found = faster_rcnn.select_detections(scores, boxes, options=DetectOptions(max_detections=2))
    np.testing.assert_array_equal(found.boxes, [boxes[0, 1], boxes[1, 2]])
    np.testing.assert_array_equal(found.labels, [1, 2])


@pytest.mark.parametrize(
    "options, n",
    [
        ({"score_threshold": 0.0}, 4),
        ({"score_threshold": 0.5}, 2),
        ({"score_threshold": 0.0, "max_candidates": 1}, 1),
        ({"score_threshold": 0.0, "max_detections": 3}, 3),
    ],
    ids=str,
)
def test_select_options(run_select, options, n):
    scores = [[0.1, 0.6, 0.3], [0.05, 0.7, 0.25], [0.95, 0.01, 0.04]]
    found = run_select(scores, [[0, 0, 10, 10], [5, 5, 15, 15], [30, 30, 40, 40]], **options)
    assert found.valid.sum() == n
    assert len(found.valid) == options.get("max_detections", 4)


def test_boxes_without_area_are_no_detections(run_select):
    found = run_select([[0.1, 0.9]] * 2, [[5, 5, 5, 9], [0, 0, 0, 0]])
    assert not found.valid.any()


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_classify_by_hand(class_agnostic):
    architecture = dataclasses.replace(cases.AGNOSTIC, class_agnostic=class_agnostic)
    model = architectures.build(2, architecture)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes(model))
    layers = variables["params"]["roi_heads"]["box_predictor"]
    layers["cls_score"]["bias"] = jnp.log(jnp.array([0.5, 0.2, 0.3]))
    # Half a width to the right; class 2, where it has numbers of its own, half a height down.
    right, down = [5.0, 0, 0, 0], [0, 5.0, 0, 0]
    bias = right if class_agnostic else right + right + down
    layers["bbox_pred"]["bias"] = jnp.array(bias)

    images = Images(jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.array([[40, 48]]))
    boxes = jnp.array([[[10.0, 10, 20, 30], [30, 20, 46, 36]]])
    classify = jax.jit(functools.partial(faster_rcnn.classify, model))
    scores, moved = classify(variables, (jnp.zeros((1, 8, 8, 16)),), images, boxes)
    np.testing.assert_allclose(scores[0], [[0.5, 0.2, 0.3]] * 2, rtol=1e-5)
    assert moved.shape == (1, 2, 3, 4)
    np.testing.assert_allclose(moved[0, :, 1], [[15, 10, 25, 30], [38, 20, 48, 36]], rtol=1e-5)
    want = moved[0, :, 1] if class_agnostic else [[10, 20, 20, 40], [30, 28, 46, 40]]
    np.testing.assert_allclose(moved[0, :, 2], want, rtol=1e-5)


@pytest.mark.parametrize("stopped", [True, False])
def test_gradient_through_proposals(stopped):
    model = architectures.build(cases.K, cases.SINGLE_LEVEL)
    batch = cases.make_batch()
    options = cases.LOSS._replace(stop_proposal_gradient=stopped)
    variables = cases.drawn(shapes(model))

    def head_loss(params):
        terms, _ = faster_rcnn.loss(model, {"params": params}, batch, train=True, options=options)
        return terms["roi_class"][0] + terms["roi_box"][0]

    gradient = jax.jit(jax.grad(head_loss))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert gradient["rpn"]["head"]["bbox_pred"]["kernel"].any() != stopped


def test_loss_wants_keys():
    model = architectures.build(cases.K, cases.PYRAMID)
    batch = cases.make_batch()
    with pytest.raises(ValueError, match=r"batch\.keys"):
        jax.eval_shape(
            lambda v: faster_rcnn.loss(model, v, batch._replace(keys=None), train=True),
            shapes(model),
        )
