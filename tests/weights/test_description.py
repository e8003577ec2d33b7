import json

import faster_rcnn_cases as cases
import pytest

from jaxdet.data.resize import ShortSide
from jaxdet.features.networks import Network
from jaxdet.systems import localizer
from jaxdet.systems.classifier import DetectOptions
from jaxdet.weights import description
from jaxdet.weights.description import Description


@pytest.mark.parametrize("canvases", [((64, 64), (32, 96)), ShortSide(320, 640)])
def test_there_and_back(canvases):
    before = Description(cases.PYRAMID, ("a", "b"), (3, 7), canvases, cases.DETECT)
    metadata = json.loads(json.dumps(description.to_metadata(before) | {"step": 3}))
    after = description.from_metadata(metadata)
    assert after == before
    assert type(after.detect.proposals) is type(before.detect.proposals)


@pytest.mark.parametrize(
    "architecture",
    [
        Network("vgg", depth=11, norm="none"),
        localizer.Architecture(Network(width=8), "vector", n_boxes=2, map_size=(3, 4)),
    ],
    ids=lambda architecture: type(architecture).__name__,
)
def test_classifiers_and_localizers_there_and_back(architecture):
    before = Description(architecture, ("a",), (5,), ((64, 64),), DetectOptions(n_guesses=3))
    assert description.from_metadata(description.to_metadata(before)) == before


def test_checkpoints_from_before_fields_were_added():
    before = Description(cases.PYRAMID, ("a",), (1,), ((64, 64),), cases.DETECT)
    metadata = description.to_metadata(before)
    for name in ("backbone", "norm_epsilon", "pyramid_norm", "rpn_convs", "head_convs"):
        del metadata["architecture"][name]
    metadata["detect"]["proposals"] = metadata["detect"]["proposals"][:4]
    assert description.from_metadata(metadata) == before


def test_other_systems_are_refused():
    with pytest.raises(ValueError, match="'yolo'"):
        description.from_metadata({"system": "yolo"})


def test_checkpoints_without_detectors_say_what_they_are():
    for name, script in (("deep_pose", "deep_pose.py"), ("box_adjuster", "box_adjustment.py")):
        with pytest.raises(ValueError, match=f"no detector.*boxes that are given.*{script}"):
            description.from_metadata({"system": name, "classes": ["a"]})
