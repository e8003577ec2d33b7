"""Writes losses.npz: torchvision's losses of boxes of every kind, and its focal loss.

Run     python tests/golden/make_losses.py   (needs torch and torchvision; the tests do not)
Wrote   the file beside it with torchvision 0.28.0, torch 2.13.0, on a CPU

Boxes: `boxes` [60 6 4] against `targets` [60 6 4], the losses, and the gradients of their sum. A
sixth of the cases has boxes without area, where torchvision's complete loss or its gradient may be
NaN.
Focal: `logits` and `answers`, values and gradients for each (gamma, alpha) of `focal_options`.
"""

import pathlib

import numpy as np
import torch
from make_boxes import boxes_of_kind
from torchvision import ops

LOSSES = {
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}
FOCAL_OPTIONS = ((2, 0.25), (0, 0.25), (0, 0.5), (1, 0.5), (0.5, 0.75), (5, 1))


def pairs_of_kind(rng: np.random.Generator, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of a kind and near it, the first pair equal; none so small that 1e-7 matters."""
    boxes, targets = boxes_of_kind(rng, min(kind, 4), 6), boxes_of_kind(rng, min(kind, 4), 6)
    if kind == 5:
        boxes, targets = boxes_of_kind(rng, 0, 6), boxes_of_kind(rng, 0, 6)
        scale = np.float32(10) ** rng.integers(0, 5, (6, 1)).astype(np.float32)
        boxes, targets = boxes * scale, targets * scale
    targets[0] = boxes[0]
    targets[1] = boxes[1] + [1, -1, 1, -1]  # Moved a little.
    targets[2] = boxes[2] + np.tile(boxes[2, 2:] - boxes[2, :2], 2) * [1, 0, 1, 0]  # Touching.
    return boxes, targets.astype(np.float32)


def of_boxes() -> dict[str, np.ndarray]:
    """Values and gradients of the three losses."""
    rng = np.random.default_rng(3)
    out: dict[str, list] = {"boxes": [], "targets": []}
    for case in range(60):
        boxes, targets = pairs_of_kind(rng, case % 6)
        out["boxes"].append(boxes)
        out["targets"].append(targets)
        for name, loss in LOSSES.items():
            first, second = (torch.tensor(x).requires_grad_() for x in (boxes, targets))
            value = loss(first, second)
            value.sum().backward()
            for key, tensor in (("", value), ("_grad_boxes", first.grad)):
                out.setdefault(name + key, []).append(tensor.detach().numpy())
            out.setdefault(f"{name}_grad_targets", []).append(second.grad.numpy())
    return {name: np.stack(values) for name, values in out.items()}


def focal() -> dict[str, np.ndarray]:
    """Values and gradients of the focal loss."""
    rng = np.random.default_rng(4)
    logits = np.concatenate([rng.normal(0, 3, 50), [-200, -50, -10, 0, 0, 10, 50, 200]])
    logits = np.tile(logits, 2).astype(np.float32)
    answers = np.repeat([True, False], len(logits) // 2)
    values, grads = [], []
    for gamma, alpha in FOCAL_OPTIONS:
        x = torch.tensor(logits).requires_grad_()
        value = ops.sigmoid_focal_loss(x, torch.tensor(answers).float(), alpha=alpha, gamma=gamma)
        value.sum().backward()
        values.append(value.detach().numpy())
        grads.append(x.grad.numpy())
    return {
        "logits": logits,
        "answers": answers,
        "focal_options": np.array(FOCAL_OPTIONS),
        "focal": np.stack(values),
        "focal_grad": np.stack(grads),
    }


def main() -> None:
    """Writes the file."""
    path = pathlib.Path(__file__).with_name("losses.npz")
    np.savez_compressed(path, **of_boxes(), **focal())


if __name__ == "__main__":
    main()
