"""Writes keypoints.npz: torchvision's heatmaps from keypoints, and keypoints from heatmaps.

Run     python tests/golden/make_keypoints.py   (needs torch and torchvision; the tests do not)
Wrote   the file beside it with torchvision 0.28.0, torch 2.13.0, on a CPU

`boxes` [64 4] of every kind; `points` [64 17 3] in and around them, `cells_{size}` and
`valid_{size}` for heatmaps of two sizes; `found` [64 2 3] and `scores`, the highest points of
`heatmaps` [64 7 9 2] (in 64ths). `exact_*`: the same where all sums are exact and many points are
equal.
"""

import pathlib

import numpy as np
import torch
from torchvision.models.detection import roi_heads

N, KEYPOINTS = 64, 17


def boxes_of_every_kind(rng: np.random.Generator) -> np.ndarray:
    """Scattered, whole and halved ones, then hard ones."""
    low, side = rng.uniform(-20, 90, (N, 2)), rng.uniform(2, 150, (N, 2))
    low[:20], side[:20] = np.round(low[:20]), np.ceil(side[:20])
    low[20:28], side[20:28] = np.round(low[20:28] * 2) / 2, np.round(side[20:28] * 2) / 2
    boxes = np.hstack([low, low + side])
    hard = [
        [0, 0, 0, 0],  # Padding.
        [5, 7, 5, 16],  # No width.
        [5, 7.5, 9, 7.5],  # No height.
        [12, 12, 8, 3],  # Negative sides.
        [7.3, 4.4, 7.8, 4.9],  # Smaller than a pixel.
        [3, 3, 4, 17],  # A column.
        [3, 3, 4.001, 4],  # Hardly two pixels.
        [0, 0, 64, 64],  # Whole blocks.
        [1, 0, 66, 129],  # Whole blocks and one pixel.
        [-40, -30, -10, -9],  # Outside of the picture.
        [0, 0, 7, 9],  # As many pixels as cells.
        [0, 0, 3, 2],  # Fewer.
    ]
    boxes[-len(hard) :] = hard
    return boxes.astype(np.float32)


def points_around(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Keypoints at parts of each box's sides: inside, on cells' borders, on corners, outside."""
    parts = rng.uniform(-0.2, 1.2, (N, KEYPOINTS, 2))
    parts[:, 3:9] = rng.integers(0, 9, (N, 6, 2)) / 8
    parts[:, 9:13] = [[0, 0], [1, 0], [0, 1], [1, 1]]
    low, side = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    xy = low + parts * side
    # Exactly on the borders, which a rounded sum misses.
    xy = np.where(parts == 1, boxes[:, None, 2:], xy)
    visibility = rng.integers(0, 3, (N, KEYPOINTS, 1))
    visibility[:, 9:13] = 2
    return np.concatenate([xy, visibility], axis=-1).astype(np.float32)


def decode(maps: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """Torchvision's keypoints and scores of maps with channels last."""
    found = roi_heads.heatmaps_to_keypoints(
        torch.tensor(maps).permute(0, 3, 1, 2).contiguous(), torch.tensor(boxes)
    )
    return [x.numpy() for x in found]


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    boxes = boxes_of_every_kind(rng)
    points = points_around(rng, boxes)
    arrays = {"boxes": boxes, "points": points}
    for size in (8, 56):
        cells, valid = roi_heads.keypoints_to_heatmap(
            torch.tensor(points), torch.tensor(boxes), size
        )
        arrays[f"cells_{size}"] = cells.numpy().astype(np.int16)
        arrays[f"valid_{size}"] = valid.numpy().astype(bool)
    maps = np.round(rng.normal(0, 4, (N, 7, 9, 2)) * 64).astype(np.int16)
    arrays["heatmaps"] = maps
    arrays["found"], arrays["scores"] = decode((maps / 64).astype(np.float32), boxes)

    # Whole logits on boxes of one, two and four points for each cell of 8 x 8.
    maps = rng.integers(0, 2, (N, 8, 8, 2)).astype(np.int16)
    maps[:4] = np.arange(4)[:, None, None, None]
    sides = 8 * 2 ** rng.integers(0, 3, (N, 2))
    low = rng.integers(-9, 9, (N, 2))
    boxes = np.hstack([low, low + sides]).astype(np.float32)
    arrays["exact_heatmaps"], arrays["exact_boxes"] = maps, boxes
    arrays["exact_found"], arrays["exact_scores"] = decode(maps.astype(np.float32), boxes)
    np.savez_compressed(pathlib.Path(__file__).with_name("keypoints.npz"), **arrays)


if __name__ == "__main__":
    main()
