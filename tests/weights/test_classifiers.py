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
    state_dict, _ = files.read(weights_file)
    del state_dict["bn1.weight"]
    files.write(tmp_path / "cut.safetensors", state_dict)
    with pytest.raises(ValueError, match=r"missing: bn1\.weight \[8\]"):
        classifiers.load(tmp_path / "cut.safetensors", network=NETWORK)
    state_dict["layer1.0.conv2.weight"] = np.zeros(3, np.float32)
    files.write(tmp_path / "flat.safetensors", state_dict)
    with pytest.raises(ValueError, match=r"flat\.safetensors: .*\n(.*\n)*.*conv2\.weight is \[3\]"):
        classifiers.load(tmp_path / "flat.safetensors", network=NETWORK)
    state_dict |= {"module.fc.bias": state_dict["fc.bias"]}
    files.write(tmp_path / "twice.safetensors", state_dict)
    with pytest.raises(ValueError, match=r"twice\.safetensors: fc\.bias is there twice"):
        classifiers.load(tmp_path / "twice.safetensors", network=NETWORK)
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
    depth=34, width=16, norm="batch", pyramid_features=8, head_features=8, n_frozen=0
)
MOBILENET = dataclasses.replace(SMALL, anchor_sizes=((32.0,),) * 3)


@pytest.mark.parametrize(
    ("network", "architecture", "new"),
    [
        (Network(width=8), SMALL, ""),
        (Network(width=8), dataclasses.replace(SMALL, norm="frozen", n_frozen=2), ""),
        (Network(width=16, norm="group"), dataclasses.replace(SMALL, norm="group"), ""),
        (Network(width=8, n_stages=2), SMALL, ", but for layer3, layer4"),
        (networks.PUBLISHED["mobilenet_v3_large"], MOBILENET, ""),
    ],
)
def test_detectors_begin_with_a_classifier(network, architecture, new):
    """Its own last layers, put on the detector's maps, say what the classifier says."""
    inner = cases.drawn(detectors.variable_shapes(3, network))
    spec = classifiers.as_backbone(network, architecture)
    fresh = cases.drawn(detectors.variable_shapes(2, spec), seed=1)
    begun, text = classifiers.begin_backbone_with(
        fresh, classifiers.Pretrained(network, inner, ("a", "b", "c"))
    )
    assert jax.tree.structure(begun) == jax.tree.structure(fresh)
    assert text == f"The backbone is trained{new}; all else is new."

    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    body = {name: t["backbone"]["body"] for name, t in begun.items() if "backbone" in t}
    maps = jax.jit(functools.partial(architectures.build(2, spec).backbone.body.apply, train=False))
    model = networks.build(network, num_classes=3)
    own = {name: t["network"] for name, t in inner.items()}
    found = maps(body, pixels, jnp.array([[64, 64]]))
    if network.family == "resnet":
        found = found[: network.n_stages]
    _, got = model.apply(own, found, train=False, method="head")
    logits = jax.jit(functools.partial(model.apply, train=False, method="logits"))
    np.testing.assert_allclose(got, logits(own, pixels), rtol=1e-4, atol=1e-6)
    for part in ("rpn", "roi_heads"):
        assert_equal(begun["params"][part], fresh["params"][part])
    assert_equal(begun["params"]["backbone"]["fpn"], fresh["params"]["backbone"]["fpn"])


def test_stages_that_a_detector_does_not_have_are_left_out():
    network = Network(width=8)
    inner = cases.drawn(detectors.variable_shapes(3, network))
    three = dataclasses.replace(SMALL, n_stages=3, anchor_sizes=((32.0,),) * 3)
    spec = classifiers.as_backbone(network, three)
    fresh = cases.drawn(detectors.variable_shapes(2, spec), seed=1)
    begun, _ = classifiers.begin_backbone_with(fresh, classifiers.Pretrained(network, inner, ()))
    body = begun["params"]["backbone"]["body"]
    assert set(body) == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert_equal(body, {name: inner["params"]["network"][name] for name in body})


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        (networks.PUBLISHED["resnext50_32x4d"], {}, "groups=32"),
        (networks.PUBLISHED["vgg16"], {}, "vgg"),
        (Network(norm="group"), {}, "must be group, as the classifier's. Got batch"),
        (Network(), {"norm": "group"}, "must be batch or frozen"),
        (Network(n_stages=3), {"norm": "frozen"}, "3 of 4 stages"),
        (Network(n_stages=3), {"n_frozen": 5}, "n_frozen of at most 4"),
    ],
)
def test_what_is_no_backbone_is_said_to(network, changes, words):
    with pytest.raises(ValueError, match=words):
        classifiers.as_backbone(network, dataclasses.replace(SMALL, **changes))


SHOWN = (
    *("resnet18", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"),
    *("mobilenet_v3_large", "mobilenet_v3_small"),
)


@pytest.mark.parametrize(
    "network",
    [
        *(networks.PUBLISHED[name] for name in SHOWN),
        Network(width=16, n_stages=3, norm="group"),
    ],
)
def test_tensors_show_which_network_they_are_of(network, tmp_path):
    """As far as names and shapes go: the file holds nothing but zeros."""
    shapes = detectors.variable_shapes(3, network)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    path = tmp_path / "mine.safetensors"
    files.write(path, torchvision.to_state_dict(zeros))
    found = classifiers.load(path, network=Network(depth=152, dropout=0.5))
    assert found.network == dataclasses.replace(network, dropout=0.5)
