import json
import pathlib
import re

import pytest

from jaxdet.weights import families

NAMES = pathlib.Path(__file__).parents[1] / "golden/fasterrcnn_resnet50_fpn_names.json"


def test_a_detector_of_torchvision():
    names = list(json.loads(NAMES.read_text()))
    assert families.describe(names) == "a Faster R-CNN of torchvision on a ResNet"
    masks = [*names, "roi_heads.mask_head.0.0.weight"]
    assert families.describe(masks) == "a Mask R-CNN of torchvision"


@pytest.mark.parametrize(
    "names, family",
    [
        (["layer1.0.conv1.weight", "fc.weight"], "ResNet classifier"),
        (["features.0.weight", "classifier.0.weight"], "VGG"),
        (["backbone.layer1.0", "bbox_head.cls"], "mmdetection"),
        (["a.b", "c.d"], "unknown .*a.b, c.d"),
        ([], "no tensors"),
    ],
)
def test_others(names, family):
    assert re.search(family, families.describe(names))
