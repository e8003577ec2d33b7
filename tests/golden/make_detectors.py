"""Writes detectors.npz: what torchvision's detectors find with seeded weights.

Run  python tests/golden/make_detectors.py     with torch 2.13, torchvision 0.28 (CPU)
"""

import pathlib

import detector_weights as seeded
import numpy as np
import torch
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import (
    _mobilenet_extractor,
    _resnet_fpn_extractor,
)
from torchvision.models.detection.faster_rcnn import AnchorGenerator, FasterRCNN
from torchvision.models.mobilenetv3 import mobilenet_v3_large
from torchvision.models.resnet import resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

SIZES = {
    "min_size": 96,
    "max_size": 160,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 100,
}
PICTURES = [(60, 90), (96, 150), (200, 310)]  # All on a canvas of (96, 160).


def resnet50_fpn():
    """The network of the published file: frozen norms without an epsilon."""
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    model = FasterRCNN(_resnet_fpn_extractor(body, 3), 91, **SIZES)
    overwrite_eps(model, 0.0)
    return model


def mobilenet_fpn():
    """The network of the published file: frozen norms."""
    body = _mobilenet_extractor(mobilenet_v3_large(norm_layer=FrozenBatchNorm2d), True, 3)
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
    return FasterRCNN(body, 91, rpn_anchor_generator=anchors, rpn_score_thresh=0.05, **SIZES)


MODELS = {
    "fasterrcnn_resnet50_fpn": resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": lambda: detection.fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, **SIZES
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": mobilenet_fpn,
}


def main():
    arrays = {}
    for name, build in MODELS.items():
        model = build().eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        tensors = seeded.state_dict(shapes)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
        for i, size in enumerate(PICTURES):
            pixels = torch.from_numpy(seeded.picture(i, size)).permute(2, 0, 1).float() / 255
            with torch.no_grad():
                found = model([pixels])[0]
            arrays |= {f"{name}/{i}/{key}": value.numpy() for key, value in found.items()}
            print(name, size, len(found["scores"]), found["scores"][-1])
    np.savez_compressed(pathlib.Path(__file__).with_name("detectors.npz"), **arrays)


if __name__ == "__main__":
    main()
