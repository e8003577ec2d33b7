"""The same state dict and pictures as torchvision: the same detections."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_files import load_module

from jaxdet.data.resize import ShortSide, bilinear
from jaxdet.structures import Images
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.weights import detectors, published, torchvision

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RULE = ShortSide(96, 160)
SIZES = [(60, 90), (96, 150), (200, 310)]


# The module that both libraries' weights are from.
seeded = load_module("tests/golden/detector_weights.py", "detector_weights")


def torch_shapes(name):
    """Names and shapes of a model's tensors in torchvision."""
    architecture = {
        "fasterrcnn_resnet50_fpn": architectures.Architecture(),
        "fasterrcnn_resnet50_fpn_v2": architectures.Architecture(
            norm="batch", pyramid_norm=True, rpn_convs=2, head_convs=4
        ),
        "fasterrcnn_mobilenet_v3_large_fpn": architectures.MOBILENET_FPN,
    }[name]
    shapes = detectors.variable_shapes(90, architecture)
    state_dict = torchvision.to_state_dict(
        jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    )
    counted = architecture.norm == "batch"
    return {
        key: value.shape
        for key, value in state_dict.items()
        if counted or not key.endswith(torchvision.COUNTERS)
    }


def batch():
    """All pictures on the one canvas that each of them has."""
    pixels = np.zeros((len(SIZES), *RULE.canvas(SIZES[0]), 3), np.float32)
    shown = []
    for i, size in enumerate(SIZES):
        assert RULE.canvas(size) == pixels.shape[1:3]
        height, width = RULE.size(size)
        pixels[i, :height, :width] = bilinear(seeded.picture(i, size), (height, width))
        shown.append((height, width))
    return Images(jnp.asarray(pixels), jnp.asarray(shown, jnp.int32))


def unpaired(golden, found):
    """Detections of torchvision without one of the same label, box and score here."""
    boxes, scores, labels = found
    free = np.ones(len(scores), bool)
    missing = 0
    for box, score, label in zip(*golden, strict=True):
        near = np.abs(boxes - box[None]).max(axis=1) < 0.05
        fits = free & near & (labels == label) & (np.abs(scores - score) < 1e-4)
        missing += not fits.any()
        free[np.argmax(fits)] &= not fits.any()
    return missing


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
    ],
)
def test_same_detections(name):
    golden = np.load(GOLDEN / "detectors.npz")
    state_dict = seeded.state_dict(torch_shapes(name))
    described = detectors.describe(state_dict, file_name=published.FILES[published.full_name(name)])
    shapes = detectors.variable_shapes(90, described.architecture)
    variables = torchvision.from_state_dict(state_dict, shapes)
    model = architectures.build(90, described.architecture)
    proposals = described.detect.proposals._replace(pre_nms=200, post_nms=100)
    options = described.detect._replace(max_candidates=4000, proposals=proposals)
    images = batch()
    found = jax.jit(functools.partial(faster_rcnn.detect, model, options=options))(
        variables, images
    )
    for i, size in enumerate(SIZES):
        want = [golden[f"{name}/{i}/{key}"] for key in ("boxes", "scores", "labels")]
        valid = np.array(found.valid[i])
        scale = np.array(size, np.float32) / np.array(images.sizes[i], np.float32)
        boxes = np.array(found.boxes[i])[valid] * np.tile(scale[::-1], 2)[None]
        got = boxes, np.array(found.scores[i])[valid], np.array(found.labels[i])[valid]
        assert len(want[1]) == 100 and len(set(want[2].tolist())) > 1
        assert unpaired(want, got) == 0, size
