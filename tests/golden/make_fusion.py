"""Writes fusion.npz: what the authors' package makes of random boxes of three models.

Run  python tests/golden/make_fusion.py     with ensemble-boxes 1.0.9, numpy 2.4
"""

import pathlib

import numpy as np
from ensemble_boxes import weighted_boxes_fusion

SIDE = 640  # Pixels of the canvas; the package wants coordinates from 0 to 1.
WEIGHTS = (2.0, 1.0, 1.5)


def model(rng: np.random.Generator, objects: np.ndarray, labels: np.ndarray):
    """Boxes, scores and labels of one model: most objects, some of them twice, and false ones."""
    seen = rng.choice(len(objects), 24)
    boxes = objects[seen] + rng.normal(0, 6, (24, 4))
    low = rng.uniform(0, SIDE - 100, (6, 2))
    boxes = np.vstack([boxes, np.hstack([low, low + rng.uniform(20, 100, (6, 2))])])
    labels = np.concatenate([labels[seen], rng.integers(1, 4, 6)])
    return (
        boxes.clip(0, SIDE).astype(np.float32),
        rng.uniform(0.05, 1, 30).astype(np.float32),
        labels,
    )


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    low = rng.uniform(0, SIDE - 200, (12, 2))
    objects = np.hstack([low, low + rng.uniform(40, 200, (12, 2))])
    labels = rng.integers(1, 4, 12)
    models = [model(rng, objects, labels) for _ in range(3)]
    boxes, scores, groups = (np.stack(arrays) for arrays in zip(*models, strict=True))
    out = {"boxes": boxes, "scores": scores, "groups": groups, "weights": np.array(WEIGHTS)}
    cases = {"equal_0.55": (None, 0.55), "equal_0.3": (None, 0.3), "weighted_0.55": (WEIGHTS, 0.55)}
    for name, (weights, threshold) in cases.items():
        fused = weighted_boxes_fusion(
            boxes / SIDE, scores, groups, weights=weights, iou_thr=threshold
        )
        for part, array in zip(("boxes", "scores", "groups"), fused, strict=True):
            out[f"{name}_{part}"] = array * SIDE if part == "boxes" else array
    np.savez_compressed(pathlib.Path(__file__).with_name("fusion.npz"), **out)
