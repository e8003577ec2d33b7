"""The same state dict and batch as torchvision: the same losses, gradients and updates.

Sample sizes take all there is, so that nothing is drawn.
"""

import contextlib
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from module_files import load_module

from jaxdet.proposals.rpn import ProposalOptions, RPNTargets
from jaxdet.structures import Batch, Images, Instances
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.systems.architectures import Architecture
from jaxdet.weights import detectors, torchvision

ROOT = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = np.load(ROOT / "training.npz")  # Made by golden/make_training.py.
CANVAS = (64, 96)
FIRST = Architecture(
    depth=18,
    n_frozen=0,
    first_stage=1,
    anchor_sizes=((16.0,), (32.0,), (64.0,), (128.0,)),
    aspect_ratios=(1.0,),
)
ARCHITECTURES = {
    "first": FIRST,
    "second": dataclasses.replace(
        FIRST, norm="batch", pyramid_norm=True, rpn_convs=2, head_convs=1
    ),
    "resnet50": dataclasses.replace(FIRST, depth=50),
    "published": Architecture(),
}
NAMES = [
    *("first", "second"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "published")),
]
TERMS = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")
OPTIONS = faster_rcnn.LossOptions(
    anchors=RPNTargets(sample_size=2000),
    proposals=ProposalOptions(pre_nms=2000, post_nms=2000, iou_threshold=1.0),
    sample_size=160,
    positive_fraction=0.75,
)
SAMPLES = {"published": 2000}  # For three anchors a cell, and P2.


# The module that both libraries' weights are from.
seeded = load_module("tests/golden/detector_weights.py", "detector_weights")


def make_batch(name, rows=5):
    pictures, boxes, labels = seeded.training_batch(name)
    pixels = np.zeros((2, *CANVAS, 3), np.uint8)
    truth = Instances(
        boxes=np.zeros((2, rows, 4), np.float32),
        labels=np.zeros((2, rows), np.int32),
        valid=np.zeros((2, rows), bool),
        crowd=np.zeros((2, rows), bool),
        difficult=np.zeros((2, rows), bool),
    )
    for i, picture in enumerate(pictures):
        pixels[i, : picture.shape[0], : picture.shape[1]] = picture
        n = len(labels[i])
        truth.boxes[i, :n], truth.labels[i, :n], truth.valid[i, :n] = boxes[i], labels[i], True
    sizes = np.array([p.shape[:2] for p in pictures], np.int32)
    batch = Batch(Images(pixels, sizes), truth, np.arange(2, dtype=np.int32), np.arange(2))
    return jax.tree.map(jnp.asarray, batch)._replace(keys=jax.random.split(jax.random.key(0), 2))


def make_step(model, tx, options):
    @jax.jit
    def step(variables, state, batch):
        def total(params):
            terms, aux = faster_rcnn.loss(
                model, variables | {"params": params}, batch, train=True, options=options
            )
            losses = jnp.stack([terms[name][0] / terms[name][1] for name in TERMS])
            return jnp.sum(losses), (losses, aux.batch_stats)

        gradient, (losses, stats) = jax.grad(total, has_aux=True)(variables["params"])
        updates, state = tx.update(gradient, state, variables["params"])
        variables = variables | {"params": optax.apply_updates(variables["params"], updates)}
        variables |= {"batch_stats": stats} if stats else {}
        return variables, state, losses, gradient

    return step


def is_trained(params, architecture):
    def read(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return architectures.is_trainable(name, architecture=architecture)

    return jax.tree_util.tree_map_with_path(read, params)


@functools.cache
def trained(name, noise=0):
    """Losses of ten steps, the first step's gradients and the last tensors, as torch has them."""
    architecture = ARCHITECTURES[name]
    shapes = detectors.variable_shapes(3, architecture)
    torch_shapes = {
        key: value.shape
        for key, value in torchvision.to_state_dict(
            jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
        ).items()
    }
    tensors = seeded.training_state_dict(torch_shapes)
    rng = np.random.default_rng(noise)
    variables = jax.tree.map(
        lambda a: jnp.asarray(a * (1 + (noise > 0) * 1e-7 * rng.normal(size=a.shape)), jnp.float32),
        torchvision.from_state_dict(tensors, shapes),
    )
    # Torch's SGD: the decay is part of the gradient that momentum averages.
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(3e-4, momentum=0.9))
    tx = optax.masked(tx, is_trained(variables["params"], architecture))
    options = OPTIONS._replace(sample_size=SAMPLES.get(name, OPTIONS.sample_size))
    step = make_step(architectures.build(3, architecture), tx, options)
    state, batch, losses, gradients = tx.init(variables["params"]), make_batch(name), [], None
    for _ in range(10):
        variables, state, now, gradient = step(variables, state, batch)
        gradients = gradient if gradients is None else gradients
        losses.append(np.array(now))
    named = torchvision.to_state_dict({"params": gradients})
    return np.array(losses), named, torchvision.to_state_dict(variables)


def check_any(check, name):
    """Checks weights as they are or, if that fails, moved by a rounding error.

    Where a box or an activation lies within rounding of a threshold, gradients jump: with weights
    moved by 1e-7 those of `second` are 8e-3, 6e-4, 1e-5 or 8e-6 of their norm from torchvision's.
    """
    for noise in (0, 2):
        with contextlib.suppress(AssertionError):
            return check(name, *trained(name, noise))
    return check(name, *trained(name, 3))


@pytest.mark.parametrize("name", NAMES)
def test_losses(name):
    check_any(losses_are_torchs, name)


def losses_are_torchs(name, losses, *_):
    np.testing.assert_allclose(losses[0], GOLDEN[f"{name}/losses"][0], rtol=1e-4)
    apart = np.abs(losses / GOLDEN[f"{name}/losses"] - 1)
    assert (apart[:5] < 2e-2).all() and (apart[-1] < 2e-2).all()
    # On some CPUs a box goes over a threshold in one step more, and that step's losses are others.
    assert (np.sort(apart, axis=0)[:-1] < 2e-2).all() and (apart < 0.2).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    check_any(gradients_are_torchs, name)


def gradients_are_torchs(name, _, gradients, *__):
    prefix = f"{name}/gradient/"
    # Frozen ones have none there, and zeros here.
    gradients = {key: gradient for key, gradient in gradients.items() if gradient.any()}
    assert {f"{prefix}{key}" for key in gradients} == {
        key for key in GOLDEN.files if key.startswith(prefix)
    }
    for key, gradient in gradients.items():
        norm, *want = GOLDEN[prefix + key]
        directions = seeded.directions(key, gradient.shape)
        got = np.tensordot(directions, gradient, axes=gradient.ndim)
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-3, err_msg=key)
        # A difference in any place shows in four random directions, each with its own length.
        np.testing.assert_allclose(got, want, atol=1e-3 * norm, rtol=0, err_msg=key)


def test_statistics():
    _, _, after = trained("second")
    prefix = "second/after/"
    compared = [key for key in GOLDEN.files if key.startswith(prefix)]
    assert len(compared) == 16
    for key in compared:
        got = after[key.removeprefix(prefix)][:8]
        scale = np.abs(GOLDEN[key]).max()
        np.testing.assert_allclose(got, GOLDEN[key], rtol=0.02, atol=0.02 * scale, err_msg=key)
