"""Writes warp.npz: torch's affine grids, and images sampled there.

Run     python tests/golden/make_warp.py   (needs torch; the tests do not)
Wrote   the file beside it with torch 2.13.0, on a CPU

64 cases, each with both conventions of corners and both of what is outside: `grid_*` [64 3 4 2],
`sample_*` [64 3 4 2] and the gradients of its sum weighted by `cotangent`, for the image and for
the points.
"""

import itertools
import pathlib

import numpy as np
import torch
from torch.nn import functional

N_CASES, TARGET, IMAGE = 64, (3, 4), (5, 7, 2)


def maps(rng: np.random.Generator) -> np.ndarray:
    """Affine maps: the identity, mirrors, zooms in and out, turns, moves out of the image."""
    angle, scale = rng.uniform(-3, 3, N_CASES), 2.0 ** rng.uniform(-2, 1.5, N_CASES)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = rng.uniform(-1.5, 1.5, (N_CASES, 2))
    theta = np.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], axis=1).reshape(-1, 2, 3)
    theta[:8] += rng.normal(0, 0.5, (8, 2, 3))  # Any affine map.
    theta[8] = np.eye(2, 3)
    theta[9] = [[-1, 0, 0], [0, 1, 0]]
    theta[10] = 0  # One point.
    theta[11] = [[0, 1, 0], [1, 0, 0]]
    theta[12] = [[1, 0, 9], [0, 1, 9]]  # All outside.
    return theta.astype(np.float32)


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(3)
    images = rng.normal(size=(N_CASES, *IMAGE)).astype(np.float32)
    cotangent = rng.normal(size=(N_CASES, *TARGET, IMAGE[2])).astype(np.float32)
    out = {"images": images, "theta": maps(rng), "cotangent": cotangent}
    for corners, outside in itertools.product((False, True), ("zeros", "border")):
        size = (N_CASES, IMAGE[2], *TARGET)
        grid = functional.affine_grid(torch.tensor(out["theta"]), size, align_corners=corners)
        grid = grid.detach().requires_grad_()
        image = torch.tensor(images.transpose(0, 3, 1, 2)).requires_grad_()
        sample = functional.grid_sample(
            image, grid, padding_mode=outside, align_corners=corners
        ).permute(0, 2, 3, 1)
        (sample * torch.tensor(cotangent)).sum().backward()
        name = f"{'corners' if corners else 'edges'}_{outside}"
        out[f"grid_{name.split('_')[0]}"] = grid.detach().numpy()
        out[f"sample_{name}"] = sample.detach().numpy()
        out[f"image_grad_{name}"] = image.grad.permute(0, 2, 3, 1).numpy()
        out[f"points_grad_{name}"] = grid.grad.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("warp.npz"), **out)


if __name__ == "__main__":
    main()
