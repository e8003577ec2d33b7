"""Writes rotated.npz: torchvision's corners and overlaps of rotated boxes, easy ones and hard ones.

Run  python tests/golden/make_rotated.py     with torch 2.13, torchvision 0.28 (CPU)
"""

import pathlib

import numpy as np
import torch
from torchvision import ops

HARD = [  # (center x, center y, width, height, angle) of one box, then of the other
    [50, 40, 20, 10, 0, 50, 40, 20, 10, 0],  # The same box.
    [50, 40, 20, 10, 33, 50, 40, 20, 10, 33],
    [50, 40, 20, 10, 33, 50, 40, 20, 10, 213],  # The same, turned around.
    [50, 40, 20, 10, 33, 50, 40, 20, 10, -327],
    [50, 40, 20, 10, 33, 50, 40, 10, 20, 123],  # The same, sides exchanged.
    [50, 40, 20, 10, 0, 50, 40, 10, 20, 90],
    [50, 40, 20, 10, 0, 50, 40, 10, 20, -450],
    [50, 40, 20, 10, 90, 50, 40, 20, 10, -450],  # Crossed.
    [50, 40, 20, 10, 0, 50, 40, 20, 10, 45],  # One center.
    [50, 40, 20, 20, 0, 50, 40, 20, 20, 45],
    [50, 40, 20, 10, 30, 50, 40, 20, 10, -60],
    [50, 40, 20, 10, 30, 50, 40, 20, 10, 30.01],  # Nearly the same.
    [50, 40, 20, 10, 30, 50.001, 40, 20, 10, 30],
    [50, 40, 20, 10, 0, 60, 40, 20, 10, 0],  # Edges that coincide.
    [50, 40, 20, 10, 0, 50, 45, 20, 20, 0],
    [50, 40, 40, 10, 0, 50, 40, 10, 10, 0],
    [50, 40, 20, 10, 0, 70, 40, 20, 10, 0],  # Touching along an edge, at a corner.
    [50, 40, 20, 10, 0, 70, 50, 20, 10, 0],
    [0, 0, 20, 20, 0, 20, 0, 200**0.5, 200**0.5, 45],
    [50, 40, 20, 10, 30, 50, 40, 2, 1, 75],  # Contained.
    [50, 40, 20, 10, 30, 54, 39, 2, 1, -10],
    [50, 40, 20, 10, 30, 52, 41, 400, 300, 17],
    [50, 40, 100, 1, 20, 50, 40, 100, 1, -70],  # Thin.
    [50, 40, 100, 1, 20, 50, 40, 100, 1, 20.5],
    [50, 40, 100, 1, 0, 60, 40.5, 100, 1, 0],
    [50, 40, 1000, 1, 45, 80, 10, 1000, 1, 45],
    [50, 40, 100, 1, 20, 50, 40, 20, 60, 130],
    [50, 40, 20, 10, 30, 900, 700, 20, 10, 30],  # Far apart.
    [50, 40, 20, 10, 45, 62, 52, 20, 10, 45],  # Apart, though not the boxes around them.
    [50, 40, 0.02, 0.01, 30, 50, 40, 0.02, 0.01, 50],  # Tiny.
    [0.5, 0.4, 0.0002, 0.0001, 30, 0.5, 0.4, 0.0002, 0.0001, 75],
    [1500, 1200, 30, 12, 30, 1503, 1201, 25, 14, 10],  # Far from the origin.
    [50, 40, 0, 10, 30, 50, 40, 20, 10, 30],  # No area.
    [50, 40, 0, 0, 0, 50, 40, 0, 0, 0],
]


def random_pairs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Pairs of boxes near each other at any angles."""
    a = np.hstack([rng.uniform(0, 60, (n, 2)), rng.uniform(5, 60, (n, 2))])
    b = np.hstack([a[:, :2] + rng.normal(0, 10, (n, 2)), rng.uniform(5, 60, (n, 2))])
    angles = rng.uniform(-400, 400, (n, 2))
    return np.hstack([a, angles[:, :1], b, angles[:, 1:]])


if __name__ == "__main__":
    pairs = np.vstack([HARD, random_pairs(np.random.default_rng(0), 60)]).astype(np.float32)
    a, b = torch.from_numpy(pairs[:, :5]), torch.from_numpy(pairs[:, 5:])
    out = {
        "pairs": pairs,
        "corners": ops.box_convert(a, "cxcywhr", "xyxyxyxy").numpy(),
        "iou": ops.box_iou(a, b, fmt="cxcywhr").diagonal().numpy(),
    }
    np.savez_compressed(pathlib.Path(__file__).with_name("rotated.npz"), **out)
