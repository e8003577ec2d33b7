"""Writes regions.npz: what torchvision's operators give for boxes of every kind.

Run  python tests/golden/make_regions.py     with torch 2.13, torchvision 0.28 (CPU)
"""

import itertools
import pathlib

import numpy as np
import torch
from torchvision import ops
from torchvision.ops.poolers import initLevelMapper

HEIGHT, WIDTH, SCALE = 13, 17, 0.25
SIZE = (2, 4)  # Bins: rows, columns.


def boxes_of_every_kind(rng):
    """Returns ordinary boxes, then hard ones, in pixels of a 52 x 68 image."""
    low, side = rng.uniform(0, 45, (12, 2)), rng.uniform(2, 25, (12, 2))
    hard = [
        [0, 0, 0, 0],  # Padding.
        [20, 16, 20, 30],  # No width.
        [30, 30, 20, 20],  # Negative sides.
        [0, 0, 68, 52],  # The image.
        [-300, -200, 400, 300],  # Far larger than it.
        [-12, -9, 14, 11],  # Over the near corner.
        [55, 40, 80, 70],  # Over the far corner.
        [200, 200, 240, 240],  # Outside.
        [-100, 10, -60, 30],  # Outside, on the near side.
        [64, 48, 68, 52],  # The last cell.
        [21, 13, 22, 14],  # Smaller than a cell.
        [10, 6, 30, 14],  # Halves, when scaled: 2.5, 1.5, 7.5, 3.5.
        [-10, -6, 30, 14],  # Negative halves.
    ]
    return np.vstack([np.hstack([low, low + side]), hard]).astype(np.float32)


def run(operator, features, boxes, cotangent):
    """Returns values and the features' gradient, channels last."""
    features = torch.tensor(features).permute(2, 0, 1)[None].requires_grad_()
    out = operator(features, [torch.tensor(boxes)])
    (out * torch.tensor(cotangent).permute(0, 3, 1, 2)).sum().backward()
    values = out.detach().permute(0, 2, 3, 1).numpy()
    return values, features.grad[0].permute(1, 2, 0).numpy()


def main():
    rng = np.random.default_rng(7)
    features = rng.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    boxes = boxes_of_every_kind(rng)
    arrays = {"features": features, "boxes": boxes, "scale": np.float32(SCALE)}
    arrays["cotangent"] = rng.normal(size=(len(boxes), *SIZE, 3)).astype(np.float32)
    operators = {"pool": ops.RoIPool(SIZE, SCALE)}
    for ratio, aligned in itertools.product([1, 2, 3], [False, True]):
        name = f"align_{ratio}_{'aligned' if aligned else 'plain'}"
        operators[name] = ops.RoIAlign(SIZE, SCALE, ratio, aligned)
    for name, operator in operators.items():
        out = run(operator, features, boxes, arrays["cotangent"])
        arrays[name], arrays[f"{name}_grad"] = out

    # Boxes of areas at, just under and just over each threshold between levels.
    sides = np.array([1, 20, 56, 112, 224, 448, 896, 5000])[:, None] * [0.9999, 1, 1.0001]
    ratio = np.array([0.25, 1, 4])
    size = np.stack(np.broadcast_arrays(sides.reshape(-1, 1) * ratio, sides.reshape(-1, 1) / ratio))
    size = size.reshape(2, -1).T
    arrays["level_boxes"] = np.hstack([np.full_like(size, 8), size + 8]).astype(np.float32)
    mapper = initLevelMapper(2, 5)
    arrays["levels"] = mapper([torch.tensor(arrays["level_boxes"])]).numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("regions.npz"), **arrays)


if __name__ == "__main__":
    main()
