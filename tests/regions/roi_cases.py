"""Oracles of pooled features, and torchvision's."""

import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

# Made by tests/golden/make_regions.py.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/regions.npz")


def groups(operator):
    """Names of groups of golden cases with equal options, at least fifty cases in all."""
    names = [n.split("/")[0] for n in GOLDEN.files if n.endswith("/options")]
    names = [n for n in names if n.rsplit("_", 1)[0] == operator]
    assert sum(len(GOLDEN[f"{n}/boxes"]) for n in names) >= 50
    return names


def compare(operator, name, *, atol):
    """Compares values and the maps' gradients, the images of a group of cases as one batch."""
    options = json.loads(str(GOLDEN[f"{name}/options"]))
    options["output_size"] = tuple(options["output_size"])
    maps, boxes, cotangent, values, grad = (
        jax.lax.collapse(GOLDEN[f"{name}/{part}"].astype(np.float32), 0, 2)  # Cases and images.
        for part in ("maps", "boxes", "cotangent", "values", "grad")
    )
    assert np.abs(values).max() > 0.5 and np.abs(grad).max() > 0.5
    pool = jax.vmap(functools.partial(operator, **options))
    got, pull = jax.jit(lambda maps: jax.vjp(lambda m: pool(m, jnp.asarray(boxes)), maps))(maps)
    np.testing.assert_allclose(got, values, rtol=0, atol=atol)
    (got,) = jax.jit(pull)(jnp.asarray(cotangent))
    np.testing.assert_allclose(got, grad, rtol=0, atol=atol)


def bilinear(features, y, x):
    """One sample, float64, straight from the definition."""
    height, width = features.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(features.shape[2])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    total = np.zeros(features.shape[2])
    for row, column in itertools.product(range(height), range(width)):
        weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
        total = total + weight * features[row, column]
    return total


def align_one(features, box, size, counts, *, aligned=False):
    """One box, bin by bin and sample by sample."""
    x1, y1, x2, y2 = np.array(box, np.float64) - (0.5 if aligned else 0)
    w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
    out = np.zeros((*size, features.shape[2]))
    for p, q, i, j in itertools.product(*map(range, (*size, *counts))):
        y = y1 + h / size[0] * (p + (i + 0.5) / counts[0])
        x = x1 + w / size[1] * (q + (j + 0.5) / counts[1])
        out[p, q] += bilinear(features, y, x) / (counts[0] * counts[1])
    return out


def adaptive_counts(box, size, *, aligned=False):
    """How many samples the adaptive operator takes along y and x."""
    w, h = (
        max(high - low, 0 if aligned else 1) for low, high in zip(box[:2], box[2:], strict=True)
    )
    return math.ceil(h / size[0]), math.ceil(w / size[1])


def slopes(function, boxes, step=1e-5):
    """Derivatives of a function of one box (its number and corners), by finite differences."""
    boxes = np.array(boxes, np.float64)
    want = np.zeros(boxes.shape)
    for n, k in np.ndindex(*boxes.shape):
        shift = step * np.eye(4)[k]
        want[n, k] = (function(n, boxes[n] + shift) - function(n, boxes[n] - shift)) / (2 * step)
    return want
