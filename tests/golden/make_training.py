"""Writes training.npz: torchvision's losses over ten SGD steps, and what its gradients are like.

Run  python tests/golden/make_training.py     with torch 2.13, torchvision 0.28 (CPU)
"""

import pathlib

import detector_weights as seeded
import numpy as np
import torch
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import FrozenBatchNorm2d

STEPS, RATE, MOMENTUM, DECAY = 10, 1e-3, 0.9, 1e-4
# As many samples as there are, so that none are drawn.
OPTIONS = {
    "min_size": 96,
    "max_size": 160,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 60,
    "rpn_batch_size_per_image": 100_000,
    "box_batch_size_per_image": 128,
    "box_positive_fraction": 0.5,
}
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def first(depth=18):
    """As `fasterrcnn_resnet50_fpn`: frozen norms, all convolutions trained."""
    body = getattr(resnet, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d)
    return FasterRCNN(_resnet_fpn_extractor(body, 5), 4, **OPTIONS)


def second(depth=18):
    """As `fasterrcnn_resnet50_fpn_v2`: norms everywhere, all trained."""
    norm = torch.nn.BatchNorm2d
    body = _resnet_fpn_extractor(getattr(resnet, f"resnet{depth}")(), 5, norm_layer=norm)
    head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=norm)
    return FasterRCNN(body, 4, rpn_head=RPNHead(256, 3, conv_depth=2), box_head=head, **OPTIONS)


def batch():
    """Pictures and targets as torchvision takes them."""
    pictures, boxes, labels = seeded.training_batch()
    images = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures]
    targets = [
        {"boxes": torch.tensor(b, dtype=torch.float32), "labels": torch.tensor(k)}
        for b, k in zip(boxes, labels, strict=True)
    ]
    return images, targets


def train(model):
    """Losses of each step, the first step's gradients, and the tensors after all."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    losses, gradients = [], {}
    model.train()
    for _ in range(STEPS):
        found = model(*batch())
        optimizer.zero_grad()
        sum(found.values()).backward()
        gradients = gradients or {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
        optimizer.step()
        losses.append([found[name].item() for name in LOSSES])
    return np.array(losses), gradients, {n: t.numpy() for n, t in model.state_dict().items()}


def main():
    arrays = {}
    for name, build in {"first": first, "second": second}.items():
        model = build()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        tensors = seeded.training_state_dict(shapes)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
        losses, gradients, after = train(model)
        print(name, losses.round(3))
        arrays[f"{name}/losses"] = losses
        for key, gradient in gradients.items():
            directions = seeded.directions(key, gradient.shape)
            projected = np.tensordot(directions, gradient, axes=gradient.ndim)
            arrays[f"{name}/gradient/{key}"] = np.array([np.linalg.norm(gradient), *projected])
        for key, value in after.items():
            if "running" in key and "layer" not in key.replace("layer_blocks", ""):
                arrays[f"{name}/after/{key}"] = value[:8]
    np.savez_compressed(pathlib.Path(__file__).with_name("training.npz"), **arrays)


if __name__ == "__main__":
    main()
