"""Writes training.npz: torchvision's losses over ten SGD steps, and what its gradients are like.

In float64: a ReLU that rounds the other way moves gradients by a thousandth of their norm.

Run  python tests/golden/make_training.py     with torch 2.13, torchvision 0.28 (CPU)
"""

import functools
import pathlib

import detector_weights as seeded
import numpy as np
import torch
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import (
    AnchorGenerator,
    FasterRCNN,
    FastRCNNConvFCHead,
)
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

STEPS, RATE, MOMENTUM, DECAY = 10, 3e-4, 0.9, 1e-4
# Every anchor becomes a proposal and every proposal a sample: nothing is drawn, and a box that goes
# over a threshold by a rounding error is one of many.
OPTIONS = {
    "min_size": 64,
    "max_size": 128,
    "rpn_pre_nms_top_n_train": 2000,
    "rpn_post_nms_top_n_train": 2000,
    "rpn_nms_thresh": 1.0,
    "rpn_batch_size_per_image": 2000,
    "box_positive_fraction": 0.75,
}
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def detector(body, norm=None, **parts):
    """A Faster R-CNN on C3 to C5 with one anchor a cell."""
    backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], norm_layer=norm)
    sizes = ((16,), (32,), (64,), (128,))
    return FasterRCNN(
        backbone,
        4,
        rpn_anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        box_batch_size_per_image=160,
        **parts,
        **OPTIONS,
    )


def first(depth=18):
    """As `fasterrcnn_resnet50_fpn`: frozen norms, all convolutions trained."""
    return detector(getattr(resnet, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d))


def second(depth=18):
    """As `fasterrcnn_resnet50_fpn_v2`, but with one convolution in the head: norms are trained."""
    norm = torch.nn.BatchNorm2d
    head = FastRCNNConvFCHead((256, 7, 7), [256], [1024], norm_layer=norm)
    body = getattr(resnet, f"resnet{depth}")()
    return detector(body, norm, rpn_head=RPNHead(256, 1, conv_depth=2), box_head=head)


def published():
    """`fasterrcnn_resnet50_fpn` as it is fine-tuned: all levels and anchors, stem and C2 frozen."""
    body = resnet.resnet50(norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(body, 3)
    return FasterRCNN(backbone, 4, box_batch_size_per_image=2000, **OPTIONS)


def batch(name):
    """Pictures and targets as torchvision takes them."""
    pictures, boxes, labels = seeded.training_batch(name)
    images = [torch.from_numpy(p).permute(2, 0, 1).double() / 255 for p in pictures]
    targets = [
        {"boxes": torch.tensor(b, dtype=torch.float64), "labels": torch.tensor(k)}
        for b, k in zip(boxes, labels, strict=True)
    ]
    return images, targets


def train(model, name):
    """Losses of each step, the first step's gradients, and the tensors after all."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    losses, gradients = [], {}
    model.train()
    for _ in range(STEPS):
        found = model(*batch(name))
        optimizer.zero_grad()
        sum(found.values()).backward()
        gradients = gradients or {
            n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.requires_grad
        }
        optimizer.step()
        losses.append([found[name].item() for name in LOSSES])
    return np.array(losses), gradients, {n: t.numpy() for n, t in model.state_dict().items()}


def main():
    arrays = {}
    builders = {
        "first": first,
        "second": second,
        "resnet50": functools.partial(first, 50),
        "published": published,
    }
    for name, build in builders.items():
        model = build().double()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        tensors = seeded.training_state_dict(shapes)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
        losses, gradients, after = train(model, name)
        print(name, losses.round(3))
        arrays[f"{name}/losses"] = losses
        for key, gradient in gradients.items():
            directions = seeded.directions(key, gradient.shape)
            projected = np.tensordot(directions, gradient, axes=gradient.ndim)
            arrays[f"{name}/gradient/{key}"] = np.array([np.linalg.norm(gradient), *projected])
        for key, value in after.items():
            if "running" in key and "layer" not in key.replace("layer_blocks", ""):
                arrays[f"{name}/after/{key}"] = value[:8].astype(np.float32)
    np.savez_compressed(pathlib.Path(__file__).with_name("training.npz"), **arrays)


if __name__ == "__main__":
    main()
