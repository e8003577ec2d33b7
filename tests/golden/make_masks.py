"""Writes masks.npz: torchvision's mask operators and pycocotools' run lengths.

Run     python tests/golden/make_masks.py   (needs torch, torchvision and pycocotools)
Wrote   the file beside it with torchvision 0.28.0, torch 2.13.0, pycocotools 2.0.11, on a CPU

`bitmaps` [24 20 26] and `boxes_around` them. `paste_{m}*` and `crop_{m}*`: masks of m x m
cells (of 255ths) into and out of
pictures, boxes of every kind. `rle_*`: strings, areas and boxes of the
bitmaps; `polygon_*`: polygons, numbers one after another, and the strings of what they cover;
`iou`, `iou_crowd`: of the first 8 bitmaps with the last 9.
"""

import pathlib

import numpy as np
import torch
from pycocotools import mask as coco
from torchvision import ops
from torchvision.models.detection import roi_heads

HEIGHT, WIDTH = 20, 26


def boxes_of_every_kind(rng: np.random.Generator, n: int) -> np.ndarray:
    """Scattered ones, then whole ones, then hard ones; n in all, in a picture of 20 x 26."""
    hard = [
        [0, 0, 0, 0],  # Padding.
        [5, 7, 5, 16],  # No width.
        [5, 7.5, 9, 7.5],  # No height.
        [12, 12, 8, 3],  # Negative sides.
        [0, 0, 26, 20],  # The picture.
        [-30, -20, 70, 50],  # Far larger than it.
        [-4.2, -3.1, 6.3, 5.4],  # Over the near corner.
        [20, 15, 31, 29],  # Over the far corner.
        [200, 200, 240, 240],  # Outside.
        [25, 19, 26, 20],  # The last pixel.
        [7.3, 4.4, 7.8, 4.9],  # Smaller than a pixel.
        [3, 3, 4, 17],  # A column.
        [-1, -1, 27, 21],  # On the border beyond which samples count as 0.
        [-2, -2, 28, 22],  # Over it.
        [-1.5, -1.5, 5.5, 5.5],  # Samples on that border.
        [19.5, 13.5, 26.5, 20.5],  # The same at the far end.
    ]
    n_whole = n // 3
    low, side = rng.uniform(-2, 18, (n, 2)), rng.uniform(0.5, 16, (n, 2))
    low[:n_whole], side[:n_whole] = np.round(low[:n_whole]), np.ceil(side[:n_whole])
    # Sides that divide by the number of cells: the count of samples is on an edge.
    side[: n_whole // 2] = 7 * rng.integers(1, 4, (n_whole // 2, 2))
    boxes = np.hstack([low, low + side])[: n - len(hard)]
    return np.vstack([boxes, hard]).astype(np.float32)


def blobs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Discs, some of them noisy, some empty or full."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centers, radii = rng.uniform(0, 24, (n, 2, 1, 1)), rng.uniform(2, 12, (n, 1, 1))
    masks = (y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2 < radii**2
    masks[::3] ^= rng.random(masks[::3].shape) < 0.2
    masks[1], masks[2] = False, True
    masks[4], masks[5] = False, False
    masks[4, 6, 9] = masks[5, :, -1] = True
    return masks


def polygons(rng: np.random.Generator, n: int) -> list[list[float]]:
    """Stars around a centre, partly outside of the picture."""
    out = []
    for i in range(n):
        corners = rng.integers(3, 9)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = rng.uniform(1, 12, corners)
        spokes = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
        points = np.round(rng.uniform(0, 20, 2) + spokes, 2 if i % 4 else 0)
        out.append(points.ravel().tolist())
    return out


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    bitmaps = blobs(rng, 24)
    arrays = {"bitmaps": bitmaps}
    arrays["boxes_around"] = ops.masks_to_boxes(torch.tensor(bitmaps)).numpy()
    for cells, n in ((7, 64), (28, 32)):
        boxes = boxes_of_every_kind(rng, n)
        if cells == 28:
            # Frames that grow from whole boxes to whole boxes.
            boxes[:4] = [[0, 0, 28, 28], [-3, 2, 11, 16], [4, 1, 18, 15], [-20, 0, 8, 14]]
            boxes[4:8] = boxes[:4] + 0.5
        frames = rng.integers(0, 256, (n, cells, cells)).astype(np.uint8)
        pasted = roi_heads.paste_masks_in_image(
            torch.tensor(frames)[:, None] / 255, torch.tensor(boxes), (HEIGHT, WIDTH)
        )
        arrays[f"paste_{cells}_frames"] = frames
        arrays[f"boxes_{cells}"] = boxes
        arrays[f"paste_{cells}"] = pasted[:, 0].numpy()
        rows = rng.integers(0, len(bitmaps), n)
        crops = roi_heads.project_masks_on_boxes(
            torch.tensor(bitmaps.astype(np.uint8)), torch.tensor(boxes), torch.tensor(rows), cells
        )
        arrays[f"crop_{cells}_rows"], arrays[f"crop_{cells}"] = rows, crops.numpy()

    rles = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in bitmaps]
    arrays["rle_counts"] = np.array([rle["counts"].decode() for rle in rles])
    arrays["rle_area"], arrays["rle_box"] = coco.area(rles), coco.toBbox(rles)
    for name, crowd in (("iou", 0), ("iou_crowd", 1)):
        arrays[name] = coco.iou(rles[:8], rles[-9:], [crowd] * 9)
    shapes = polygons(rng, 60)
    drawn = [coco.frPyObjects([shape], HEIGHT, WIDTH)[0]["counts"].decode() for shape in shapes]
    pairs = [
        coco.merge(coco.frPyObjects(shapes[i : i + 2], HEIGHT, WIDTH))["counts"].decode()
        for i in range(0, 60, 2)
    ]
    arrays["polygon_lengths"] = np.array([len(shape) for shape in shapes])
    arrays["polygon_numbers"] = np.concatenate(shapes)
    arrays["polygon_counts"], arrays["polygon_pair_counts"] = np.array(drawn), np.array(pairs)
    np.savez_compressed(pathlib.Path(__file__).with_name("masks.npz"), **arrays)


if __name__ == "__main__":
    main()
