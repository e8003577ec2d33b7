import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features import networks
from jaxdet.features.networks import Network
from jaxdet.weights import published

MILLIONS = {  # Parameters, as torchvision documents them; the first digits of each.
    "alexnet": 61.10,
    "vgg11_bn": 132.87,
    "mobilenet_v3_small": 2.54,
    "resnet18": 11.69,
    "resnext50_32x4d": 25.03,
}
PICTURES = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


@functools.cache
def outputs_and_variables(name, num_classes):
    """Shapes of what the last layer reads, of logits and of all variables."""
    model = networks.build(networks.PUBLISHED[name], num_classes=num_classes)

    def run(key, x):
        def both(model, x):
            return model.head(model(x, jnp.full((1, 2), 64), train=False), train=False)

        return model.init_with_output(key, x, method=both)

    return jax.eval_shape(run, jax.random.key(0), PICTURES)


def at(tree, path):
    return functools.reduce(lambda inner, key: inner[key], path, tree)


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_are_torchvisions(name):
    _, variables = outputs_and_variables(name, 1000)
    count = sum(x.size for x in jax.tree.leaves(variables["params"])) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.006)


def test_every_published_classifier_has_its_numbers():
    names = {key.partition(":")[0] for key in published.FILES if "rcnn" not in key}
    assert names == networks.PUBLISHED.keys()


@pytest.mark.parametrize("name", [*MILLIONS, "googlenet"])
def test_last_layer_reads_the_vector_and_alone_knows_the_classes(name):
    path = networks.PUBLISHED[name].last_layer
    (vector, logits), few = outputs_and_variables(name, 7)
    assert at(few["params"], path)["kernel"].shape == (vector.shape[1], 7)
    assert logits.shape == (1, 7)
    many = outputs_and_variables(name, 1000)[1]["params"]
    differ = {
        tuple(key.key for key in where[:-1])
        for (where, a), b in zip(
            jax.tree_util.tree_leaves_with_path(few["params"]),
            jax.tree.leaves(many),
            strict=True,
        )
        if a.shape != b.shape
    }
    assert differ == {path}


def test_head_gives_what_the_last_layer_reads(rng):
    network = Network(width=16, n_stages=1)
    model = networks.build(network, num_classes=5)
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)

    @jax.jit
    def run(key, x):
        variables = model.init(key, x, train=False, method="logits")
        maps = model.apply(variables, x, jnp.full((2, 2), 32), train=False)
        vectors, logits = model.apply(variables, maps, train=False, method="head")
        want = model.apply(variables, x, train=False, method="logits")
        return vectors, logits, want, at(variables["params"], network.last_layer)

    vectors, logits, want, layer = run(jax.random.key(0), x)
    np.testing.assert_array_equal(logits, want)
    assert np.all(vectors >= 0) and np.any(vectors > 0)
    got = vectors @ layer["kernel"] + layer["bias"][None]
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)


def test_comes_back_from_json():
    network = Network("vgg", depth=16, dropout=0.1)
    assert Network(**json.loads(json.dumps(dataclasses.asdict(network)))) == network


@pytest.mark.parametrize("wrong", [Network(norm="none"), Network("vgg", depth=18)], ids=str)
def test_rejects(wrong):
    with pytest.raises(ValueError, match=r"none|18"):
        networks.build(wrong, num_classes=3)
