import dataclasses
import hashlib
import json

import faster_rcnn_cases as cases
import jax
import numpy as np
import pytest

from jaxdet.data.resize import ShortSide
from jaxdet.features.networks import Network
from jaxdet.systems import architectures, localizer, overfeat
from jaxdet.systems.architectures import Architecture
from jaxdet.systems.classifier import DetectOptions
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
from jaxdet.weights.tensor_pickle import WeightsError

# What torchvision's files can be of, on narrow layers.
SMALL = Architecture(
    depth=18, width=8, n_frozen=2, pyramid_features=8, head_features=8, norm="frozen"
)
V2 = dataclasses.replace(
    SMALL, depth=50, norm="batch", pyramid_norm=True, rpn_convs=2, head_convs=4
)
MOBILE = dataclasses.replace(architectures.MOBILENET_FPN, pyramid_features=8, head_features=8)


def drawn(architecture, num_classes=3):
    shapes = detectors.variable_shapes(num_classes, architecture)
    return jax.device_get(cases.drawn(shapes))


def state_dict_of(architecture, num_classes=3):
    state_dict = torchvision.to_state_dict(drawn(architecture, num_classes))
    counted = architecture.norm == "batch"
    names = [n for n in state_dict if counted or not n.endswith(torchvision.COUNTERS)]
    return {name: state_dict[name] for name in names}


@pytest.mark.parametrize("architecture", [SMALL, V2, MOBILE])
def test_the_network_is_told_by_its_tensors(architecture):
    described = detectors.describe(state_dict_of(architecture))
    assert described.architecture == architecture
    assert described.classes == ("class 1", "class 2", "class 3")
    assert described.category_ids == (1, 2, 3)
    assert described.canvases == ShortSide(800, 1333)
    mobile = architecture is MOBILE
    assert described.detect.proposals.score_threshold == (0.05 if mobile else 0)


@pytest.mark.parametrize(
    "name, epsilon, short, n_proposals",
    [
        ("fasterrcnn_resnet50_fpn", 0.0, 800, 1000),
        ("fasterrcnn_resnet50_fpn_v2", 1e-5, 800, 1000),
        ("fasterrcnn_mobilenet_v3_large_fpn", 1e-5, 800, 1000),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 1e-5, 320, 150),
    ],
)
def test_what_only_a_published_files_name_tells(name, epsilon, short, n_proposals):
    file_name = published.FILES[f"{name}:COCO_V1"]
    architecture = MOBILE if "mobile" in name else V2 if "v2" in name else SMALL
    described = detectors.describe(state_dict_of(architecture), file_name=file_name)
    assert described.architecture.norm_epsilon == epsilon
    assert described.canvases.min_size == short
    assert described.detect.proposals.post_nms == n_proposals


def test_ninety_classes_are_cocos():
    described = detectors.describe(state_dict_of(SMALL, 90))
    assert described.classes == published.COCO_CLASSES
    assert described.category_ids[-1] == 90


def test_load_with_changes(tmp_path):
    path = tmp_path / "a.pth"
    files.write(path, state_dict_of(SMALL))
    loaded = detectors.load(path, norm_epsilon=0.5, canvases=[(64, 64)], classes=["a", "b", "c"])
    assert loaded.description.architecture.norm_epsilon == 0.5
    assert loaded.description.canvases == ((64, 64),)
    assert loaded.description.classes == ("a", "b", "c")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, drawn(SMALL))
    with pytest.raises(WeightsError, match=r"a\.pth: it knows 3 classes, not 1"):
        detectors.load(path, classes=["a"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_save_and_load(tmp_path, suffix):
    described = Description(SMALL, ("a", "b"), (3, 7), ((64, 64),), cases.DETECT)
    path = tmp_path / f"a{suffix}"
    detectors.save(path, detectors.Detector(described, drawn(SMALL, 2)))
    loaded = detectors.load(path)
    if suffix == ".safetensors":
        assert loaded.description == described
    else:
        assert loaded.description.classes == ("class 1", "class 2")
    assert loaded.description.architecture.norm == SMALL.norm == "frozen"
    assert jax.tree.leaves(loaded.variables["params"])[0].dtype == np.float32


def test_checkpoints_there_and_back(tmp_path):
    described = Description(SMALL, ("a", "b"), (3, 7), ShortSide(96, 160), cases.DETECT)
    before = detectors.Detector(described, drawn(SMALL, 2))
    detectors.save_checkpoint(tmp_path / "run", before)
    after = detectors.load_checkpoint(tmp_path / "run")
    assert after.description == described
    for kind, tree in before.variables.items():
        jax.tree.map(np.testing.assert_array_equal, after.variables[kind], tree)
    told = detectors.load(tmp_path / "run", classes=("c", "d"), canvases=[(64, 96)])
    assert told.description == described._replace(classes=("c", "d"), canvases=((64, 96),))
    with pytest.raises(WeightsError, match=r"run: it knows 2 classes, not 1"):
        detectors.load(tmp_path / "run", classes=("c",))
    with pytest.raises(ValueError, match="new or empty"):
        detectors.save_checkpoint(tmp_path / "run", before)


def test_published_names_are_downloaded(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    files.write(path, state_dict_of(SMALL))
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(tmp_path / f"fasterrcnn_small-{digits}.pth")
    monkeypatch.setitem(published.FILES, "fasterrcnn_small:V1", path.name)
    monkeypatch.setattr(download, "fetch", lambda url, progress: tmp_path / url.split("/")[-1])
    assert detectors.load("fasterrcnn_small").description.architecture == SMALL
    with pytest.raises(ValueError, match=r"'fasterrcnn' is no run.* no published weights"):
        detectors.load("fasterrcnn")


@pytest.mark.parametrize("name", ["resnet18", "vgg16:IMAGENET1K_FEATURES"])
def test_published_classifiers_are_refused_before_they_are_downloaded(monkeypatch, name):
    monkeypatch.setattr(download, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=f"{name}: is a published classifier; .* fasterrcnn_res"):
        detectors.load(name)


OVERFEAT = overfeat.Architecture("small", box_hidden=(8,))
LOCALIZER = localizer.Architecture(Network(width=8, n_stages=1), features=4)


@pytest.mark.parametrize("architecture", [LOCALIZER.network, LOCALIZER, OVERFEAT])
def test_other_systems_there_and_back(tmp_path, architecture):
    options = description.SYSTEMS[description.name_of(architecture)].options()
    described = Description(architecture, ("a", "b"), (3, 7), ((64, 64),), options)
    before = detectors.Detector(described, drawn(architecture, 2))
    detectors.save(tmp_path / "a.safetensors", before)
    after = detectors.load(tmp_path / "a.safetensors")
    assert after.description == described
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
    with pytest.raises(WeightsError, match=r"a\.safetensors: norm_epsilon"):
        detectors.load(tmp_path / "a.safetensors", norm_epsilon=0.1)
    if architecture is LOCALIZER.network:
        return
    with pytest.raises(ValueError, match=r"torchvision has no (localizer|overfeat).*a\.pth"):
        detectors.save(tmp_path / "a.pth", before)
    assert not (tmp_path / "a.pth").exists()


def test_a_classifier_is_written_under_torchvisions_names(tmp_path):
    network = LOCALIZER.network
    described = Description(network, ("a", "b"), (3, 7), ((64, 64),), DetectOptions())
    before = detectors.Detector(described, drawn(network, 2))
    detectors.save(tmp_path / "a.pth", before)
    names = files.read(tmp_path / "a.pth")[0].keys()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"} <= names
    begun = classifiers.load(tmp_path / "a.pth", network=network)
    jax.tree.map(np.testing.assert_array_equal, begun.variables, before.variables)
    with pytest.raises(WeightsError, match=r"a ResNet classifier\. classifier\.py --weights"):
        detectors.load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: {"fc.weight": np.ones(2), "layer1.0.x": np.ones(2)}, "no Faster.*ResNet class"),
        (lambda s: s | {"roi_heads.mask_head.0.0.weight": np.ones(2)}, "no Faster.*Mask R-CNN"),
        (
            lambda s: {k: v for k, v in s.items() if "layer4.1" not in k},
            r"stages of \(2, 2, 2, 1\)",
        ),
        (lambda s: {k: v for k, v in s.items() if "fc6" not in k}, r"missing: .*fc6\.bias"),
    ],
)
def test_wrong_architectures(tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    files.write(path, change(state_dict_of(SMALL)))
    with pytest.raises(WeightsError, match=rf"a\.safetensors: [\s\S]*{message}"):
        detectors.load(path)


def test_a_damaged_description(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write(path, state_dict_of(SMALL), texts={"jaxdet": json.dumps({"system": "yolo"})})
    with pytest.raises(WeightsError, match="'yolo'"):
        detectors.load(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m["architecture"].update(new_field=1),
        lambda m: m.pop("canvases"),
        lambda m: m.update(canvases={"short": "a"}),
        lambda m: m.update(architecture=[]),
        lambda m: m.update(classes=5),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, spoil):
    described = Description(SMALL, ("a", "b"), (3, 7), ShortSide(), cases.DETECT)
    metadata = description.to_metadata(described)
    spoil(metadata)
    path = tmp_path / "a.safetensors"
    files.write(path, state_dict_of(SMALL), texts={"jaxdet": json.dumps(metadata)})
    with pytest.raises(WeightsError, match=r"a\.safetensors: .* damaged, or of another version"):
        detectors.load(path)


def predictor_of(variables):
    return variables["params"]["roi_heads"]["box_predictor"]


@pytest.mark.parametrize("known", [("a", "b", "c"), detectors.numbered(3)])
def test_the_head_is_kept_for_the_same_classes(known):
    old, fresh = drawn(SMALL, 3), drawn(SMALL, 3)
    kept, text = detectors.with_head_for(old, fresh, known=known, wanted=("a", "b", "c"))
    assert kept is old
    named = known == ("a", "b", "c")
    assert text.startswith("The head is kept, for 3 classes." if named else "The head is kept: cla")
    assert named or "taken for a, b, c" in text


@pytest.mark.parametrize("agnostic", [False, True])
def test_classes_that_both_know_keep_their_part_of_the_head(agnostic):
    architecture = dataclasses.replace(SMALL, class_agnostic=agnostic)
    old, fresh = drawn(architecture, 3), drawn(architecture, 4)
    fresh = jax.tree.map(lambda x: x + 1, fresh)
    new, text = detectors.with_head_for(
        old, fresh, known=("a", "b", "c"), wanted=("x", "c", "y", "a")
    )
    assert text == "The head is new for 2 of 4 classes."
    rows = [("old", 0), ("new", 1), ("old", 3), ("new", 3), ("old", 1)]  # Background first.
    of = {"old": predictor_of(old), "new": predictor_of(fresh)}
    for array in ("kernel", "bias"):
        scores = predictor_of(new)["cls_score"][array]
        want = [of[where]["cls_score"][array][..., row] for where, row in rows]
        np.testing.assert_array_equal(scores, np.stack(want, axis=-1))
        boxes = predictor_of(new)["bbox_pred"][array]
        if agnostic:
            np.testing.assert_array_equal(boxes, of["old"]["bbox_pred"][array])
        else:
            want = [
                of[where]["bbox_pred"][array][..., 4 * row : 4 * row + 4] for where, row in rows
            ]
            np.testing.assert_array_equal(boxes, np.concatenate(want, axis=-1))


def test_a_new_head():
    old, fresh = drawn(SMALL, 3), drawn(SMALL, 5)
    new, text = detectors.with_head_for(
        old, jax.tree.map(lambda x: x + 1, fresh), known=("a", "b", "c"), wanted=tuple("vwxyz")
    )
    assert text == "The head is new for 5 of 5 classes."
    shapes = detectors.variable_shapes(5, SMALL)
    assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, shapes)
    heads = new["params"]["roi_heads"]
    want = fresh["params"]["roi_heads"]["box_predictor"]["cls_score"]["bias"] + 1
    np.testing.assert_array_equal(heads["box_predictor"]["cls_score"]["bias"], want)
    kept = old["params"]["roi_heads"]["box_head"]
    jax.tree.map(np.testing.assert_array_equal, heads["box_head"], kept)
    assert old["params"]["roi_heads"]["box_predictor"]["cls_score"]["bias"].shape == (4,)
