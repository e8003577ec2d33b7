"""ResNets against torchvision's numbers; what holds without them is in test_resnet.py."""

import functools

import backbone_cases as cases
import backbone_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.features.resnet import BasicBlock, ResNet, resnet

MODELS = {
    **{f"resnet{depth}": functools.partial(resnet, depth) for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": functools.partial(resnet, 50, groups=32, width_per_group=4),
    "resnext101_32x8d": functools.partial(resnet, 101, groups=32, width_per_group=8),
    "resnext101_64x4d": functools.partial(resnet, 101, groups=64, width_per_group=4),
    "wide_resnet50_2": functools.partial(resnet, 50, width_per_group=128),
    "wide_resnet101_2": functools.partial(resnet, 101, width_per_group=128),
}
QUICK = ("resnet18", "resnet50", "resnext50_32x4d")


@pytest.mark.parametrize("name", MODELS)
def test_names_are_torchvisions(name):
    parity.assert_names(name, MODELS[name]())


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_numbers_are_torchvisions(name):
    parity.assert_parity(name, MODELS[name]())


def test_ten_steps_of_training_stay_beside_torchs():
    """The gradients by layer, the loss of each step, and the statistics after the last."""
    spec, golden = cases.TRAINING, parity.GOLDEN
    model = ResNet((1, 1, 1, 1), BasicBlock)
    size = spec["size"]
    x = jnp.asarray(cases.pictures(spec["batch"], size, size, 3))
    variables = parity.weights("train", parity.like(model, x, train=True, method="logits"))
    optimizer = optax.sgd(spec["learning_rate"], spec["momentum"])

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, stats):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            method="logits",
            mutable=["batch_stats"],
        )
        labels = jnp.arange(spec["batch"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean(), updates["batch_stats"]

    @jax.jit
    def step(params, stats, state):
        (value, stats), gradients = loss(params, stats)
        updates, state = optimizer.update(gradients, state)
        norms = jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, gradients))
        return optax.apply_updates(params, updates), stats, state, value, norms

    params, stats = variables["params"], variables["batch_stats"]
    state, losses = optimizer.init(params), []
    for i in range(spec["steps"]):
        params, stats, state, value, norms = step(params, stats, state)
        losses.append(value)
        if i == 0:
            want = dict(
                zip(golden["train/gradient_names"].tolist(), golden["train/gradients"], strict=True)
            )
            for name, norm in parity.by_name({"params": norms}).items():
                np.testing.assert_allclose(norm, want.pop(name), rtol=1e-3, err_msg=name)
            assert not want
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, golden["train/losses"], rtol=1e-3, atol=1e-5)
    seen = 0
    for name, value in parity.by_name({"batch_stats": stats}).items():
        if f"train/{name}" in golden:
            parity.assert_close(value[::16], golden[f"train/{name}"], rtol=1e-3)
            seen += 1
    assert seen == 13


def test_groups_need_bottlenecks():
    with pytest.raises(ValueError, match=r"depth.*18"):
        resnet(18, groups=2)


def test_half_precision():
    parity.assert_half_precision(resnet(50, groups=32, width_per_group=4, dtype=jnp.bfloat16))
