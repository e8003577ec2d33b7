"""Writes boxes.npz: torchvision's overlaps and suppressions of boxes of every kind.

Run     python tests/golden/make_boxes.py   (needs torch and torchvision; the tests do not)
Wrote   the file beside it with torchvision 0.28.0, torch 2.13.0, on a CPU

Overlaps: `a` [66 5 4] against `b` [66 6 4], the values, and the gradients of their sum weighted by
`cotangent`, which is 0 for boxes that touch, where overlaps have a kink; NaN where torchvision
divides 0 by 0 (every sixth case has boxes without area).
Suppressions: 54 sets in 160 rows each, of which the first `count` are there; `kept_*` holds the
rows kept, in order, of all sets and thresholds one after another, `kept_*_count` how many of each.
"""

import pathlib

import numpy as np
import torch
from torchvision import ops

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
N_CASES, ROWS = 54, 160
OVERLAPS = {
    "iou": ops.box_iou,
    "giou": ops.generalized_box_iou,
    "diou": ops.distance_box_iou,
    "ciou": ops.complete_box_iou,
}


def boxes_of_kind(rng: np.random.Generator, kind: int, n: int) -> np.ndarray:
    """Six kinds: scattered, clustered, on whole pixels, copies, degenerate, huge and tiny."""
    low, side = rng.uniform(0, 60, (n, 2)), rng.uniform(2, 50, (n, 2))
    if kind == 1:
        centers = rng.uniform(0, 100, (6, 2))[rng.integers(0, 6, n)]
        low, side = centers + rng.normal(0, 4, (n, 2)), rng.uniform(20, 40, (n, 2))
    elif kind == 2:
        low, side = rng.integers(0, 6, (n, 2)), rng.integers(1, 7, (n, 2))
    elif kind == 3:
        low, side = np.round(low / 30) * 30, np.round(side / 25 + 1) * 25
    elif kind == 4:
        side = side * rng.integers(-1, 3, (n, 2)).clip(0)
    elif kind == 5:
        scale = 10.0 ** rng.integers(-3, 5, (n, 1))
        low, side = low * scale, side * scale
    return np.hstack([low, low + side]).astype(np.float32)


def overlaps(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values and gradients of the four overlaps."""
    out: dict[str, list] = {name: [] for name in ("a", "b", "cotangent")}
    for case in range(66):
        a, b = (boxes_of_kind(rng, case % 6, n) for n in (5, 6))
        b[0] = a[0]
        cotangent = rng.normal(size=(5, 6)).astype(np.float32)
        low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
        cotangent[(low == high).any(-1)] = 0
        for name, value in (("a", a), ("b", b), ("cotangent", cotangent)):
            out[name].append(value)
        for name, overlap in OVERLAPS.items():
            first, second = (torch.tensor(x).requires_grad_() for x in (a, b))
            value = overlap(first, second)
            (value * torch.tensor(cotangent)).sum().backward()
            for key, tensor in (("", value), ("_grad_a", first.grad), ("_grad_b", second.grad)):
                out.setdefault(name + key, []).append(tensor.detach().numpy())
    return {name: np.stack(values) for name, values in out.items()}


def suppressions(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows kept by `nms` and `batched_nms`, scores with and without ties."""
    boxes = np.zeros((N_CASES, ROWS, 4), np.float32)
    scores = np.zeros((N_CASES, ROWS), np.float32)
    groups = np.zeros((N_CASES, ROWS), np.int32)
    count = np.array([0, 1, 2, *rng.integers(10, ROWS, N_CASES - 4), ROWS])
    kept: dict[str, list] = {"nms": [], "batched": []}
    for case, n in enumerate(count):
        boxes[case, :n] = boxes_of_kind(rng, case % 5, n)  # Huge ones lose their groups' digits.
        levels = 8 if case % 2 else 100_000
        scores[case, :n] = rng.integers(0, levels, n) / np.float32(levels)
        groups[case, :n] = rng.integers(0, 3, n)
        b, s, g = (torch.tensor(x[case, :n]) for x in (boxes, scores, groups))
        for threshold in THRESHOLDS:
            kept["nms"].append(ops.nms(b, s, threshold).numpy())
            # The exact form; the other moves boxes, and ties of overlaps with them.
            vanilla = ops.boxes._batched_nms_vanilla
            rows = vanilla(b, s, g, threshold).numpy()
            # Its final sort is not stable; ties are put in the order of `nms`.
            kept["batched"].append(rows[np.lexsort((rows, -scores[case, rows]))])
    out = {"boxes": boxes, "scores": scores, "groups": groups.astype(np.uint8), "count": count}
    for name, rows in kept.items():
        out[f"kept_{name}"] = np.concatenate(rows).astype(np.uint8)
        out[f"kept_{name}_count"] = np.array([len(r) for r in rows], np.uint8)
    return out


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    arrays = overlaps(rng) | suppressions(rng) | {"thresholds": np.array(THRESHOLDS)}
    np.savez_compressed(pathlib.Path(__file__).with_name("boxes.npz"), **arrays)


if __name__ == "__main__":
    main()
