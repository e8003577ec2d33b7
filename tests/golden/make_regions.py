"""Writes regions.npz: what torchvision's operators give for boxes of every kind.

Run  python tests/golden/make_regions.py     with torch 2.13, torchvision 0.28 (CPU)

A case is a batch of two maps, four boxes in each, and options. Cases of equal options lie in one
array, named operator_number/what, so that they can be compiled together.
"""

import json
import pathlib

import numpy as np
import torch
from torchvision import ops
from torchvision.ops.poolers import initLevelMapper

N_IMAGES, N_BOXES = 2, 4
# Height, width and channels of the maps, bins, scale, then what else the operator takes.
OPTIONS = {
    "align": [
        ((7, 9, 2), (2, 3), 1.0, {"sampling_ratio": 1, "aligned": False}),
        ((6, 8, 2), (3, 2), 0.25, {"sampling_ratio": 1, "aligned": True}),
        ((5, 7, 1), (1, 4), 1 / 3, {"sampling_ratio": 2, "aligned": False}),
        ((8, 5, 1), (3, 3), 0.0625, {"sampling_ratio": 2, "aligned": True}),
        ((1, 9, 1), (2, 5), 0.3, {"sampling_ratio": 3, "aligned": False}),
        ((6, 6, 1), (4, 1), 1.0, {"sampling_ratio": 3, "aligned": True}),
    ],
    "adaptive": [
        ((5, 7, 1), (2, 3), 1.0, {"aligned": False}),
        ((6, 8, 1), (1, 3), 0.25, {"aligned": True}),
        ((7, 4, 1), (3, 1), 1 / 3, {"aligned": False}),
        ((9, 5, 1), (1, 1), 0.3, {"aligned": True}),
    ],
    "pool": [
        ((7, 9, 2), (2, 3), 1.0, {}),
        ((6, 8, 2), (3, 1), 0.25, {}),
        ((9, 5, 2), (1, 4), 1 / 3, {}),
        ((60, 2, 1), (7, 1), 0.5, {}),
    ],
    "ps_align": [
        ((4, 5, 12), (2, 3), 1.0, {"sampling_ratio": 2}),
        ((6, 4, 3), (3, 1), 0.25, {"sampling_ratio": 1}),
        ((4, 6, 4), (1, 4), 1 / 3, {"sampling_ratio": 3}),
    ],
    "ps_adaptive": [
        ((4, 5, 12), (2, 3), 1.0, {}),
        ((7, 4, 3), (3, 1), 0.25, {}),
        ((4, 6, 4), (1, 4), 0.3, {}),
    ],
    "ps_pool": [
        ((4, 5, 12), (2, 3), 1.0, {}),
        ((7, 4, 3), (3, 1), 0.25, {}),
        ((6, 20, 7), (1, 7), 0.5, {}),
    ],
}
N_CASES = {"align": 9, "adaptive": 13, "pool": 13, "ps_align": 17, "ps_adaptive": 17, "ps_pool": 17}
OPERATORS = {
    "align": ops.roi_align,
    "adaptive": lambda *args, aligned: ops.roi_align(*args, sampling_ratio=-1, aligned=aligned),
    "pool": ops.roi_pool,
    "ps_align": ops.ps_roi_align,
    "ps_adaptive": ops.ps_roi_align,
    "ps_pool": ops.ps_roi_pool,
}


def draw_box(rng, height, width):
    """Returns a box in cells of the map: ordinary, or hard in some way."""
    map_size = np.array([width, height])
    low, side = rng.uniform(0, 0.8, 2) * map_size, rng.uniform(0.1, 0.6, 2) * map_size
    ordinary = np.array([*low, *(low + side)])
    larger = np.array([*(low - rng.integers(1, 9) * map_size), *(low + 3 * map_size)])
    on_border = rng.choice([-1, -0.5, 0, 0.5, 1], 4) + rng.choice([0, 1]) * np.tile(map_size, 2)
    outside = rng.choice([-2, 2]) * map_size
    kinds = [
        ordinary,
        [*(-side), *(low + side / 2)],  # Over the near corner.
        [*low, *(map_size + side)],  # Over the far corner.
        larger,
        np.floor(larger),  # So that samples may lie on the borders of the map.
        np.floor(larger * 2) / 2,
        [*(low + outside), *(low + side + outside)],
        [*low, low[0], low[1] + side[1]],  # No width.
        [*low, *low],
        [*(low + side), *low],  # Negative sides.
        np.floor(ordinary),
        np.floor(ordinary * 2) / 2,  # Half cells.
        [*low, *(low + side / 20)],  # Smaller than a cell.
        on_border,
        [*np.floor(low), *(np.floor(low) + rng.integers(0, 120, 2) / 2)],  # Long, halves.
        [0, 0, *map_size],
        [0, 0, 0, 0],
    ]
    return kinds[rng.integers(len(kinds))]


def ends(boxes, scale, axis, n_bins):
    """Returns where the bins of ps_roi_pool end on an axis (0 is y), before they are cut."""
    low, high = boxes[..., 1 - axis] * np.float32(scale), boxes[..., 3 - axis] * np.float32(scale)
    low, high = (np.copysign(np.floor(np.abs(x) + 0.5), x) for x in (low, high))
    return low[..., None] + np.maximum(high - low, 1)[..., None] * np.arange(1, n_bins + 1) / n_bins


def draw(rng, operator, shape, size, scale):
    """Returns maps, boxes and cotangents of a case; maps and cotangents are small integers."""
    boxes = [[draw_box(rng, *shape[:2]) for _ in range(N_BOXES)] for _ in range(N_IMAGES)]
    boxes = (np.array(boxes) / scale).astype(np.float32)
    if "adaptive" in operator:
        # Negative numbers of samples make torchvision's roi_align throw.
        low, high = boxes[..., :2], boxes[..., 2:]
        boxes[..., 2:] = np.where(high < low, low - 0.4 / scale, high)
    n_channels = shape[2] // (size[0] * size[1] if operator.startswith("ps") else 1)
    maps = rng.integers(-3, 4, (N_IMAGES, *shape)).astype(np.int8)
    cotangent = rng.integers(-2, 3, (*boxes.shape[:2], *size, n_channels)).astype(np.int8)
    if operator == "ps_pool":
        # Bins that reach the last row or column: torchvision's gradient is not of its values.
        inside = [ends(boxes, scale, i, size[i]) <= shape[i] - 1 for i in (0, 1)]
        cotangent[~(inside[0][..., :, None] & inside[1][..., None, :])] = 0
    return maps, boxes, cotangent


def run(operator, maps, boxes, cotangent, *options, **more):
    """Returns values and the gradient of the maps, channels last."""
    maps = torch.tensor(maps, dtype=torch.float32).permute(0, 3, 1, 2).requires_grad_()
    out = operator(maps, [torch.tensor(b) for b in boxes], *options, **more)
    cotangent = torch.tensor(cotangent, dtype=torch.float32).flatten(0, 1).permute(0, 3, 1, 2)
    (out.nan_to_num() * cotangent).sum().backward()  # ps_roi_align divides 0 by 0 samples.
    values = out.detach().nan_to_num().permute(0, 2, 3, 1).unflatten(0, (N_IMAGES, N_BOXES))
    return values.numpy(), maps.grad.permute(0, 2, 3, 1).numpy()


def main():
    rng = np.random.default_rng(7)
    arrays = {}
    for operator, rows in OPTIONS.items():
        assert len(rows) * N_CASES[operator] >= 50
        for number, (shape, size, scale, options) in enumerate(rows):
            cases = []
            for _ in range(N_CASES[operator]):
                inputs = draw(rng, operator, shape, size, scale)
                out = run(OPERATORS[operator], *inputs, size, scale, **options)
                cases.append([*inputs, *out])
            names = ("maps", "boxes", "cotangent", "values", "grad")
            for name, stack in zip(names, zip(*cases, strict=True), strict=True):
                arrays[f"{operator}_{number}/{name}"] = np.stack(stack)
            options = {"output_size": size, "spatial_scale": scale} | options
            arrays[f"{operator}_{number}/options"] = json.dumps(options)

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
