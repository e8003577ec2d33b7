"""Writes ops.npz: what torchvision makes of a few random boxes.

Run     python tests/golden/make_ops.py   (needs torch and torchvision; the tests do not)
Wrote   the file beside it with torchvision 0.28.0, torch 2.13.0, on a CPU
"""

import pathlib

import numpy as np
import torch
from torchvision import ops
from torchvision.models.detection import _utils, anchor_utils, image_list

RATIOS = (0.5, 1.0, 2.0)


def random_boxes(rng: np.random.Generator, n: int) -> torch.Tensor:
    """Boxes of a detector: many around few objects."""
    center, side = rng.uniform(0, 100, (6, 2)), rng.uniform(20, 60, (6, 2))
    which = rng.integers(0, 6, n)
    low = center[which] + rng.normal(0, 6, (n, 2))
    high = low + side[which] * rng.uniform(0.7, 1.4, (n, 2))
    return torch.from_numpy(np.hstack([low, high]).astype(np.float32))


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 60), random_boxes(rng, 60)
    scores = torch.from_numpy(rng.permutation(60).astype(np.float32))
    groups = torch.from_numpy(rng.integers(0, 3, 60))
    out = {"boxes": boxes, "anchors": anchors, "scores": scores, "groups": groups}

    out["iou"] = ops.box_iou(boxes[:10], anchors[:10])
    for threshold in (0.3, 0.7):
        out[f"nms_{threshold}"] = ops.nms(boxes, scores, threshold)
        out[f"batched_nms_{threshold}"] = ops.batched_nms(boxes, scores, groups, threshold)

    deltas = torch.from_numpy(rng.normal(0, 3, (60, 4)).astype(np.float32))
    coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    out["encoded"] = coder.encode_single(boxes, anchors)
    out["deltas"] = deltas
    # Half of them beyond the limit of the growth.
    out["decoded"] = coder.decode_single(deltas * 10, anchors)

    # A canvas of 96 x 64 whose last level is not a divisor of it.
    levels = [torch.zeros(1, 1, h, w) for h, w in ((12, 8), (6, 4), (5, 3))]
    images = image_list.ImageList(torch.zeros(1, 3, 96, 64), [(96, 64)])
    generator = anchor_utils.AnchorGenerator(((16,), (32,), (64, 91)), (RATIOS,) * 3)
    out["pyramid"] = generator(images, levels)[0]

    iou = ops.box_iou(boxes[:5], out["pyramid"])
    for name, thresholds in {"rpn": (0.7, 0.3, True), "head": (0.5, 0.5, False)}.items():
        out[f"match_{name}"] = _utils.Matcher(*thresholds)(iou)

    arrays = {name: value.numpy() for name, value in out.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("ops.npz"), **arrays)


if __name__ == "__main__":
    main()
