"""The same boxes through torchvision; golden/make_ops.py made the numbers."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import anchors, coders, nms
from jaxdet.geometry import iou as iou_ops

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "ops.npz")
HEAD = (10.0, 10.0, 5.0, 5.0)


def golden(*names):
    return [jnp.asarray(GOLDEN[name]) for name in names]


def test_iou():
    boxes, others = golden("boxes", "anchors")
    got = iou_ops.pairwise_iou(boxes[:10], others[:10])
    np.testing.assert_allclose(got, GOLDEN["iou"], rtol=1e-6, atol=1e-7)


def test_encode():
    got = jax.jit(functools.partial(coders.encode_boxes, weights=HEAD))(*golden("boxes", "anchors"))
    np.testing.assert_allclose(got, GOLDEN["encoded"], rtol=1e-5, atol=2e-5)


def test_decode():
    deltas, boxes = golden("deltas", "anchors")
    got = jax.jit(functools.partial(coders.decode_boxes, weights=HEAD))(10 * deltas, boxes)
    np.testing.assert_allclose(got, GOLDEN["decoded"], rtol=1e-5, atol=1e-3)
    grown = (10 * GOLDEN["deltas"][:, 2:] / 5 > coders.MAX_LOG_SCALE).mean()
    assert 0.1 < grown < 0.5  # Both sides of the limit are seen.


def test_pyramid():
    grids, sizes = [(12, 8), (6, 4), (5, 3)], [(16,), (32,), (64, 91)]
    got = anchors.pyramid_anchors(grids, (96, 64), sizes, (0.5, 1.0, 2.0))
    np.testing.assert_array_equal(jnp.concatenate(got), GOLDEN["pyramid"])


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms(threshold):
    boxes, scores, groups = golden("boxes", "scores", "groups")
    run = functools.partial(nms.batched_nms, iou_threshold=threshold, max_outputs=60)
    for name, group in (("nms", jnp.zeros_like(groups)), ("batched_nms", groups)):
        got = jax.jit(run)(boxes, scores, group, jnp.ones(60, bool))
        np.testing.assert_array_equal(got.indices[got.valid], GOLDEN[f"{name}_{threshold}"])
