"""Writes resize.npz: pictures and what torch's interpolation makes of them.

Run  python tests/golden/make_resize.py     with torch 2.13 (CPU)
"""

import pathlib

import numpy as np
import torch

SIZES = [((13, 19), (40, 58)), ((41, 30), (16, 11)), ((9, 50), (13, 72)), ((24, 24), (23, 25))]


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (size, new) in enumerate(SIZES):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        pixels = torch.from_numpy(image).permute(2, 0, 1).float()[None]
        resized = torch.nn.functional.interpolate(
            pixels, size=new, mode="bilinear", align_corners=False
        )
        arrays |= {f"image/{i}": image, f"resized/{i}": resized[0].permute(1, 2, 0).numpy()}
    np.savez_compressed(pathlib.Path(__file__).with_name("resize.npz"), **arrays)


if __name__ == "__main__":
    main()
