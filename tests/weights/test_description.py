import json

import faster_rcnn_cases as cases
import pytest

from jaxdet.data.resize import ShortSide
from jaxdet.weights import description
from jaxdet.weights.description import Description


@pytest.mark.parametrize("canvases", [((64, 64), (32, 96)), ShortSide(320, 640)])
def test_there_and_back(canvases):
    before = Description(cases.PYRAMID, ("a", "b"), (3, 7), canvases, cases.DETECT)
    metadata = json.loads(json.dumps(description.to_metadata(before) | {"step": 3}))
    after = description.from_metadata(metadata)
    assert after == before
    assert type(after.detect.proposals) is type(before.detect.proposals)


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
