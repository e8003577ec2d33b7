"""The rows of `vs_torchvision.py` that are whole detectors, with the same weights in both."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
from operator_rows import Row
from torchvision.models import detection, resnet
from torchvision.models.detection import backbone_utils
from torchvision.ops import misc

from jaxdet.structures import Batch, Images, Instances
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.systems.architectures import Architecture
from jaxdet.training import fit, state, steps
from jaxdet.weights import detectors, torchvision

N_CLASSES, N_OBJECTS = 90, 8
# Drawn as torch draws them, few boxes would be likely enough to be found, and suppression cheap.
SPREAD = {"rpn.head.cls_logits": 60.0, "roi_heads.box_predictor.cls_score": 5.0}


def published_model(size: tuple[int, int]) -> Any:
    """`fasterrcnn_resnet50_fpn` as it is fine-tuned, for pictures that need no resizing."""
    torch.manual_seed(0)
    body = resnet.resnet50(weights=None, norm_layer=misc.FrozenBatchNorm2d)
    backbone = backbone_utils._resnet_fpn_extractor(body, 3)
    model = detection.FasterRCNN(backbone, N_CLASSES + 1, min_size=min(size), max_size=max(size))
    for name, module in model.named_modules():
        if name in SPREAD:
            module.weight.data *= SPREAD[name]
    return model


def variables_of(model: Any) -> Any:
    """The same weights for us."""
    state_dict = {name: x.numpy() for name, x in model.state_dict().items()}
    shapes = detectors.variable_shapes(N_CLASSES, Architecture())
    return torchvision.from_state_dict(state_dict, shapes)


def system_rows(rng: np.random.Generator) -> Iterator[Row]:
    """Detection in a picture of 800 x 1088, and an update at batch 2 of 480 x 640."""
    yield detection_row(rng, (800, 1088))
    yield training_row(rng, (480, 640))


def detection_row(rng: np.random.Generator, size: tuple[int, int]) -> Row:
    """From pixels to final boxes."""
    model = published_model(size).eval()
    pixels = rng.integers(0, 256, (1, *size, 3)).astype(np.uint8)
    picture = torch.from_numpy(pixels[0].transpose(2, 0, 1).astype(np.float32) / 255)

    def theirs() -> Any:
        with torch.inference_mode():
            return model([picture])[0]["scores"]

    network = architectures.build(N_CLASSES)
    return Row(
        "detect, ResNet-50-FPN, 800 x 1088",
        lambda variables, images: faster_rcnn.detect(network, variables, images).scores[0],
        (variables_of(model), Images(pixels, np.array([size], np.int32))),
        theirs,
        lambda scores: np.pad(scores, (0, 100 - len(scores))),
    )


def training_row(rng: np.random.Generator, size: tuple[int, int]) -> Row:
    """One update of all that fine-tuning trains, by SGD with momentum; the result is the loss."""
    model = published_model(size).train()
    pixels = rng.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    low = rng.uniform(0, 0.5, (2, N_OBJECTS, 2))
    corners = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], axis=-1)
    boxes = (corners * np.tile(size[::-1], 2)).astype(np.float32)
    labels = rng.integers(1, N_CLASSES + 1, (2, N_OBJECTS)).astype(np.int32)
    yes, no = np.ones((2, N_OBJECTS), bool), np.zeros((2, N_OBJECTS), bool)
    numbers = np.arange(2, dtype=np.int32)
    images = Images(pixels, np.full((2, 2), size, np.int32))
    batch = Batch(images, Instances(boxes, labels, yes, no, no), numbers, numbers)

    options = fit.Options(learning_rate=1e-6, warmup_steps=0, clip_norm=None)
    tx = fit.make_optimizer(
        options,
        trainable=functools.partial(architectures.is_trainable, architecture=Architecture()),
    )
    network = architectures.build(N_CLASSES)
    step = functools.partial(
        steps.train_step, loss_fn=functools.partial(faster_rcnn.loss, network), tx=tx
    )
    first = state.init_state(jax.random.key(0), variables_of(model), tx)

    pictures = [torch.from_numpy(x.transpose(2, 0, 1).astype(np.float32) / 255) for x in pixels]
    targets = [
        {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(label).long()}
        for b, label in zip(boxes, labels, strict=True)
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-7, momentum=0.9, weight_decay=1e-4)
    for parameter in trained:  # As ours: there before memory is measured.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def theirs() -> Any:
        optimizer.zero_grad()
        loss = sum(model(pictures, targets).values())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Row(
        "update, ResNet-50-FPN, 2 x 480 x 640",
        step,
        (first, batch),
        theirs,
        compared=lambda result: result[1]["loss"],
        carries=True,
    )
