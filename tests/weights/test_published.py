import re

import pytest

from jaxdet.weights import published


def test_names_without_version_are_the_last():
    assert published.full_name("resnet50") == "resnet50:IMAGENET1K_V2"
    assert published.full_name("resnet50:IMAGENET1K_V1") == "resnet50:IMAGENET1K_V1"
    assert published.full_name("vgg16") == "vgg16:IMAGENET1K_V1"
    assert published.full_name("resnet") is None


def test_urls():
    assert published.url("fasterrcnn_resnet50_fpn") == (
        "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    )
    with pytest.raises(ValueError, match=r"'resnet51' is no run.*there are .*resnet50, "):
        published.url("resnet51")


def test_files_end_in_their_hash():
    assert all(re.search(r"-[0-9a-f]{8}\.pth$", file) for file in published.FILES.values())
    assert len(set(published.FILES.values())) == len(published.FILES)


def test_coco_has_eighty_classes_and_ten_gaps():
    named = [name for name in published.COCO_CLASSES if name != "N/A"]
    assert len(named) == len(set(named)) == 80
    assert len(published.COCO_CLASSES) == 90
    # COCO's own numbers.
    numbers = {name: i + 1 for i, name in enumerate(published.COCO_CLASSES)}
    some = {"person": 1, "stop sign": 13, "dining table": 67, "toothbrush": 90}
    assert some.items() <= numbers.items()
