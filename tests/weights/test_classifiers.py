import dataclasses
import functools

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.features import networks
from jaxdet.features.networks import Network
from jaxdet.structures import Images
from jaxdet.systems import architectures, classifier, localizer
from jaxdet.systems.classifier import DetectOptions
from jaxdet.systems.localizer import Architecture
from jaxdet.training import checkpoints, state
from jaxdet.weights import (
    classifiers,
    description,
    detectors,
    download,
    files,
    published,
    torchvision,
)
from jaxdet.weights.description import Description

NETWORK = Network(width=8, n_stages=2)
IMAGES = Images(jnp.zeros((1, 32, 32, 3)), jnp.array([[32, 32]], jnp.int32))


def drawn(model, seed=0):
    return jax.device_get(jax.jit(model.init)(jax.random.key(seed), IMAGES))


@pytest.fixture(scope="module")
def trained():
    """Of three classes."""
    return drawn(classifier.build(3, NETWORK), seed=1)


@pytest.fixture
def weights_file(trained, tmp_path):
    """As torchvision would save the network, which knows of no `network` around it."""
    inner = {collection: tree["network"] for collection, tree in trained.items()}
    files.write(tmp_path / "narrow.safetensors", torchvision.to_state_dict(inner))
    return tmp_path / "narrow.safetensors"


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_file_there_and_back(trained, weights_file):
    found = classifiers.load(weights_file, network=NETWORK)
    assert found.network == NETWORK and found.classes == ()
    assert_equal(found.variables, trained)


def test_a_run(trained, tmp_path):
    kept = Description(NETWORK, ("a", "b", "c"), (1, 2, 3), ((32, 32),), DetectOptions())
    saved = checkpoints.Checkpoints(tmp_path, metadata=description.to_metadata(kept))
    saved.save_last(state.init_state(jax.random.key(0), trained, optax.identity()))
    saved.close()
    found = classifiers.load(tmp_path)
    assert found.network == NETWORK and found.classes == ("a", "b", "c")
    assert_equal({k: found.variables[k] for k in trained}, trained)


def test_a_file_that_says_what_it_is(trained, tmp_path):
    kept = Description(NETWORK, ("a", "b", "c"), (1, 2, 3), ((32, 32),), DetectOptions())
    detectors.save(tmp_path / "own.safetensors", detectors.Detector(kept, trained))
    found = classifiers.load(tmp_path / "own.safetensors")
    assert found.network == NETWORK and found.classes == ("a", "b", "c")
    assert_equal({k: found.variables[k] for k in trained}, trained)


def test_a_published_file_that_lies_here(trained, weights_file, monkeypatch):
    """Its name says which network it is of, as of a download."""
    monkeypatch.setitem(published.FILES, "narrow:V1", weights_file.name)
    monkeypatch.setitem(networks.PUBLISHED, "narrow", NETWORK)
    found = classifiers.load(weights_file, network=Network(dropout=0.3))
    assert found.network == dataclasses.replace(NETWORK, dropout=0.3)
    assert_equal(found.variables, trained)


def test_a_published_name(trained, weights_file, monkeypatch):
    asked = []

    def fetch(url, *, progress):
        asked.append(url)
        return weights_file

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setitem(networks.PUBLISHED, "resnet18", NETWORK)
    found = classifiers.load("resnet18:IMAGENET1K_V1")
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert_equal(found.variables, trained)


def test_googlenets_other_classifiers_are_left_out(tmp_path, trained):
    inner = {collection: tree["network"] for collection, tree in trained.items()}
    state_dict = torchvision.to_state_dict(inner) | {"aux1.fc1.bias": np.zeros(3, np.float32)}
    files.write(tmp_path / "aux.safetensors", state_dict)
    found = classifiers.load(tmp_path / "aux.safetensors", network=NETWORK)
    assert_equal(found.variables, trained)


def test_what_does_not_fit_is_named(weights_file, tmp_path):
    with pytest.raises(ValueError, match=r"layer3\.0\.conv1"):
        classifiers.load(weights_file, network=Network(width=8, n_stages=3))
    with pytest.raises(ValueError, match="resnet18"):
        classifiers.load("resnet19")


@pytest.mark.parametrize("n_boxes", [1, 2])
def test_a_localizer_of_one_box_is_a_classifier(n_boxes, tmp_path):
    spec = Architecture(NETWORK, n_boxes=n_boxes, features=4)
    variables = drawn(localizer.build(3, spec))
    kept = Description(spec, ("a", "b", "c"), (1, 2, 3), ((32, 32),), DetectOptions())
    saved = checkpoints.Checkpoints(tmp_path, metadata=description.to_metadata(kept))
    saved.save_last(state.init_state(jax.random.key(0), variables, optax.identity()))
    saved.close()
    if n_boxes == 2:
        with pytest.raises(ValueError, match="n_boxes=2"):
            classifiers.load(tmp_path)
    else:
        found = classifiers.load(tmp_path)
        assert found.classes == ("a", "b", "c")
        assert_equal(found.variables, {k: {"network": v["network"]} for k, v in variables.items()})


@pytest.mark.parametrize("new_head", [True, False])
def test_localizers_begin_with_a_classifier(trained, weights_file, new_head):
    model = localizer.build(5 if new_head else 3, Architecture(NETWORK, features=4))
    fresh = drawn(model)
    begun = classifiers.begin_with(
        fresh, classifiers.load(weights_file, network=NETWORK), new_head=new_head
    )
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    assert_equal(begun["batch_stats"], trained["batch_stats"])
    for name, tree in begun["params"]["network"].items():
        of = fresh if new_head and name == "fc" else trained
        assert_equal(tree, of["params"]["network"][name])
    for name in ("box_head", "box_predictor"):
        assert_equal(begun["params"][name], fresh["params"][name])


def test_a_new_last_layer_deep_inside():
    pretrained = classifiers.Pretrained(
        networks.PUBLISHED["alexnet"],
        {"params": {"network": {"features": 1, "classifier": {"1": 2, "6": 3}}}},
        (),
    )
    fresh = {"params": {"network": {"features": 4, "classifier": {"1": 5, "6": 6}}, "box_head": 7}}
    begun = classifiers.begin_with(fresh, pretrained, new_head=True)
    assert begun == {
        "params": {"network": {"features": 1, "classifier": {"1": 2, "6": 6}}, "box_head": 7}
    }


SMALL = architectures.Architecture(
    depth=34, width=8, pyramid_features=8, head_features=8, n_frozen=0
)


@pytest.mark.parametrize(("norm", "n_stages"), [("batch", 4), ("frozen", 2)])
def test_detectors_begin_with_a_classifier(norm, n_stages):
    """Its own last layer, put on the detector's C3 or C5, says what the classifier says."""
    network = Network(width=8, n_stages=n_stages)
    inner = cases.drawn(detectors.variable_shapes(3, network))
    spec = classifiers.as_backbone(network, dataclasses.replace(SMALL, norm=norm))
    assert (spec.backbone, spec.depth, spec.width, spec.norm) == ("resnet", 18, 8, norm)
    fresh = cases.drawn(detectors.variable_shapes(2, spec), seed=1)
    begun, text = classifiers.begin_backbone_with(
        fresh, classifiers.Pretrained(network, inner, ("a", "b", "c"))
    )
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    assert text == (
        "The backbone is trained; all else is new."
        if n_stages == 4
        else "The backbone is trained, but for layer3, layer4; all else is new."
    )
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    model = architectures.build(2, spec)
    body = {name: t["backbone"]["body"] for name, t in begun.items() if "backbone" in t}
    maps = jax.jit(functools.partial(model.backbone.body.apply, train=False))(
        body, pixels, jnp.array([[64, 64]])
    )
    last = inner["params"]["network"]["fc"]
    got = maps[n_stages - 1].mean((1, 2)) @ last["kernel"] + last["bias"][None]
    logits = functools.partial(
        networks.build(network, num_classes=3).apply, train=False, method="logits"
    )
    want = jax.jit(logits)({name: t["network"] for name, t in inner.items()}, pixels)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for part in ("rpn", "roi_heads"):
        assert_equal(begun["params"][part], fresh["params"][part])
    assert_equal(begun["params"]["backbone"]["fpn"], fresh["params"]["backbone"]["fpn"])


def test_a_mobilenet_is_a_backbone():
    """By torchvision's names of its tensors in both."""
    network = networks.PUBLISHED["mobilenet_v3_large"]
    inner = cases.drawn(detectors.variable_shapes(3, network))
    spec = classifiers.as_backbone(network, architectures.MOBILENET_FPN)
    fresh = cases.drawn(detectors.variable_shapes(2, spec), seed=1)
    begun, _ = classifiers.begin_backbone_with(fresh, classifiers.Pretrained(network, inner, ()))
    found = torchvision.to_state_dict(begun)
    features = {
        name.replace("features.", "backbone.body."): x
        for name, x in torchvision.to_state_dict(inner).items()
        if name.startswith("features.") and not name.endswith("num_batches_tracked")
    }
    assert len(features) > 100
    for name, x in features.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_what_is_no_backbone_is_named():
    with pytest.raises(ValueError, match="groups=32"):
        classifiers.as_backbone(networks.PUBLISHED["resnext50_32x4d"], SMALL)
    with pytest.raises(ValueError, match="vgg"):
        classifiers.as_backbone(networks.PUBLISHED["vgg16"], SMALL)
    network = Network(width=16, norm="group")
    spec = classifiers.as_backbone(network, dataclasses.replace(SMALL, norm="batch"))
    inner = cases.drawn(detectors.variable_shapes(3, network))
    fresh = cases.drawn(detectors.variable_shapes(2, spec), seed=1)
    with pytest.raises(ValueError, match=r"missing: bn1\.running_mean"):
        classifiers.begin_backbone_with(fresh, classifiers.Pretrained(network, inner, ()))
