"""Writes targets.npz: which anchors torchvision matches with which objects, and its SSD's mining.

Run     python tests/golden/make_targets.py   (needs torch and torchvision; the tests do not)
Wrote   the file beside it with torchvision 0.28.0, torch 2.13.0, on a CPU

Matching: 60 images with 8 rows for objects, some of them not valid, and 40 anchors. A result is the
object's row, -1 for negative anchors, -2 for ignored ones. An object that overlaps no anchor is not
shown to torchvision, which would match all anchors (`Matcher`) or the first (`SSDMatcher`) with it.
Mining: 55 images of 32 anchors, 4 classes; the sum over an image of its classification loss.
"""

import pathlib
import types

import numpy as np
import torch
from make_boxes import boxes_of_kind
from torchvision import ops
from torchvision.models.detection import _utils as rules
from torchvision.models.detection import ssd

IMAGES, OBJECTS, ANCHORS = 60, 8, 40
MATCHERS = {
    "rpn": rules.Matcher(0.7, 0.3, allow_low_quality_matches=True),
    "retinanet": rules.Matcher(0.5, 0.4, allow_low_quality_matches=True),
    "gap": rules.Matcher(0.5, 0.4, allow_low_quality_matches=False),
    "head": rules.Matcher(0.5, 0.5, allow_low_quality_matches=False),
    "ssd": rules.SSDMatcher(0.5),
}


def image_of_kind(rng: np.random.Generator, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects and anchors: the six kinds of boxes, then IoUs of tenths, then few at all."""
    if kind == 6:
        # Each anchor is so many tenths of an object: IoUs are those tenths, thresholds included.
        low = np.arange(OBJECTS)[:, None] * [25, 0] * (rng.uniform(size=(OBJECTS, 1)) < 0.7)
        objects = np.hstack([low, low + np.array([20, 10])]).astype(np.float32)
        anchors = objects[rng.integers(0, OBJECTS, ANCHORS)]
        anchors[:, 3] = rng.integers(0, 11, ANCHORS)
    else:
        kind = 0 if kind == 7 else kind
        objects, anchors = (boxes_of_kind(rng, kind, n) for n in (OBJECTS, ANCHORS))
    if kind == 3:
        objects[1], anchors[3:6], anchors[7] = objects[0], anchors[2], objects[0]
    objects[-1] += 1e5  # Overlaps nothing.
    return objects, anchors


def matches() -> dict[str, np.ndarray]:
    """Objects, which are valid, anchors, and each matcher's results."""
    rng = np.random.default_rng(1)
    out: dict[str, list] = {}
    for image in range(IMAGES):
        objects, anchors = image_of_kind(rng, image % 8)
        valid = rng.uniform(size=OBJECTS) < (0.2 if image % 8 == 7 else 0.8)
        iou = ops.box_iou(torch.tensor(objects), torch.tensor(anchors))
        rows = np.flatnonzero(valid & (iou.max(1).values > 0).numpy())
        for name, value in (("objects", objects), ("valid", valid), ("anchors", anchors)):
            out.setdefault(name, []).append(value)
        for name, matcher in MATCHERS.items():
            result = np.full(ANCHORS, -1, np.int8)
            if len(rows):
                result = matcher(iou[rows]).numpy()
                result = np.where(result >= 0, rows[np.maximum(result, 0)], result).astype(np.int8)
            out.setdefault(name, []).append(result)
    return {name: np.stack(values) for name, values in out.items()}


def mining() -> dict[str, np.ndarray]:
    """Logits, labels (0 is background) and the loss of an image."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (55, 32, 4)).astype(np.float32)
    logits[::5] = np.round(logits[::5])  # Ties.
    count = rng.integers(0, 9, 55)  # Negatives suffice.
    labels = rng.integers(1, 4, (55, 32)) * (np.arange(32) < count[:, None])
    labels = rng.permuted(labels, axis=1)
    model = types.SimpleNamespace(neg_to_pos_ratio=3, box_coder=rules.BoxCoder((10, 10, 5, 5)))
    box = torch.tensor([[0.0, 0, 1, 1]])
    losses = []
    for of_image, wanted in zip(logits, labels, strict=True):
        # Object i has label i.
        target = {"boxes": box.repeat(4, 1), "labels": torch.arange(4)}
        outputs = {
            "cls_logits": torch.tensor(of_image)[None],
            "bbox_regression": torch.zeros(1, 32, 4),
        }
        matched = torch.tensor(np.where(wanted > 0, wanted, -1))
        loss = ssd.SSD.compute_loss(model, [target], outputs, [box.repeat(32, 1)], [matched])
        losses.append(float(loss["classification"]) * max(1, (wanted > 0).sum()))
    return {
        "logits": logits,
        "labels": labels.astype(np.uint8),
        "mined_loss": np.array(losses, np.float32),
    }


def main() -> None:
    """Writes the file."""
    path = pathlib.Path(__file__).with_name("targets.npz")
    np.savez_compressed(path, **matches(), **mining())


if __name__ == "__main__":
    main()
