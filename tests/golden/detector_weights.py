"""Weights and pictures that both libraries are given: seeded by name, NumPy only.

Batch norms have means, scales and variances of their own, and every eighth channel a variance of
about 1e-5, where the epsilon decides; what comes before such a channel is as small.
"""

import re
import zlib

import numpy as np

SPREAD = {  # Of the last layers: many boxes, in many places, of many classes.
    "rpn.head.cls_logits": 3.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 8.0,
    "roi_heads.box_predictor.bbox_pred": 2.0,
}
GAINS = SPREAD | {"roi_heads.box_head.5": 0.4}
FLAT = ("roi_heads.box_head.fc6", "roi_heads.box_head.5")


def drawn(name):
    """The generator of this name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def variances(norm, channels):
    """Running variances of a norm."""
    v = drawn(f"{norm}.running_var").uniform(0.5, 2, channels)
    v[::8] = drawn(f"{norm}.tiny").uniform(0.3e-5, 3e-5, len(v[::8]))
    return v


def norm_after(layer):
    """The norm that a convolution's outputs go to, by name."""
    if match := re.search(r"^(.*\.)conv(\d)$", layer):
        return f"{match[1]}bn{match[2]}"
    return re.sub(r"\.0$", ".1", layer)


def kernel(name, shape, names, *, mobile):
    """The weights of a layer."""
    layer = name.rsplit(".", 1)[0]
    x = drawn(name).standard_normal(shape, np.float32)
    gain = GAINS.get(layer, 2**0.5)
    if layer == "rpn.head.cls_logits" and "rpn.head.conv.1.0.weight" in names:
        gain = 0.8  # Behind two layers, 3 would make most probabilities 1: ties.
    if ".inner_blocks." in name:  # What the backbones put out differs in size.
        gain = 6.0 if mobile else 0.12
    if layer in SPREAD:  # What all inputs have in common says nothing of a box, ...
        x -= x.mean(axis=1, keepdims=True)
    if layer in FLAT:  # ... nor what all cells of a box have.
        cells = x.reshape(shape[0], -1, 49)
        x = (cells - cells.mean(axis=2, keepdims=True)).reshape(shape)
    if mobile and layer.startswith("rpn.head.conv"):
        # Maps that hardly vary give anchors in all places the same score: ties.
        x, gain = x - x.mean(axis=(2, 3), keepdims=True), 2.0
    x *= np.float32(gain / np.prod(shape[1:]) ** 0.5)
    norm = norm_after(layer)
    if norm != layer and f"{norm}.running_var" in names:
        rows = np.sqrt(variances(norm, shape[0])).astype(np.float32)
        x *= rows.reshape(-1, *[1] * (len(shape) - 1))
    return x


def tensor(name, shape, names, *, mobile):
    """The tensor of this name, float32."""
    layer, kind = name.rsplit(".", 1)
    rng = drawn(name)
    if kind == "num_batches_tracked":
        return np.zeros((), np.int64)
    if kind == "running_var":
        return variances(layer, shape[0]).astype(np.float32)
    if len(shape) > 1:
        return kernel(name, shape, names, mobile=mobile)
    if f"{layer}.running_var" not in names:
        return rng.normal(0, 0.1, shape).astype(np.float32)
    # Small where constants would add up to more than what a picture has to say.
    shift = 0.1 if mobile else 1.0
    if kind == "running_mean":
        spread = 0.5 * shift * np.sqrt(variances(layer, shape[0]))
        return (rng.normal(0, 1, shape) * spread).astype(np.float32)
    # Norms of branches are small, so that depth does not blow up the features.
    size = 0.3 if re.search(r"layer\d\.\d+\.bn3$", layer) else 1.0
    size = 0.8 if ".block." in layer else size
    if kind == "weight":
        return (size * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return (size * shift * rng.normal(0, 0.3, shape)).astype(np.float32)


def state_dict(shapes):
    """Tensors by name.

    Args:
      shapes: Of each, by name.
    """
    mobile = "backbone.body.16.0.weight" in shapes
    return {n: tensor(n, tuple(shape), shapes, mobile=mobile) for n, shape in shapes.items()}


def picture(seed, size):
    """A picture of rectangles and waves of colours, RGB bytes."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        a, b, phase = [*rng.uniform(0.01, 0.2, 2).tolist(), rng.uniform(0, 6)]
        pixels[..., channel] = 128 + 60 * np.sin(a * x + b * y + phase)
    for _ in range(12):
        y1, x1 = rng.integers(0, height - 8), rng.integers(0, width - 8)
        y2, x2 = y1 + rng.integers(8, height // 2), x1 + rng.integers(8, width // 2)
        pixels[y1:y2, x1:x2] = 0.3 * pixels[y1:y2, x1:x2] + 0.7 * rng.integers(0, 256, 3)
    pixels += rng.normal(0, 12, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def training_state_dict(shapes):
    """Tensors by name from which a few steps of training go well: no tiny variances, small losses.

    Args:
      shapes: Of each, by name.
    """
    tensors = state_dict(shapes)
    for name, array in tensors.items():
        layer = name.rsplit(".", 1)[0]
        if name.endswith("running_var"):
            np.maximum(array, 0.5, out=array)
        basic = f"{layer[:-1]}3.weight" not in shapes
        if layer in SPREAD or (basic and re.search(r"layer\d\.\d+\.bn2\.(weight|bias)$", name)):
            array *= np.float32(0.3)
    return tensors


# Gradients hardly move when these pictures' weights do by 1e-7 of their size. With others a unit or
# two change sides at that, and gradients by up to 8e-3 of their norm: different ones on each CPU.
TRAINING_PICTURES = {"first": 102, "second": 104, "resnet50": 102, "published": 102}


def training_batch(name):
    """Two pictures on one canvas of (64, 96), the second narrower, with boxes of three classes.

    Args:
      name: Of the network that they are for.
    """
    boxes = [
        [[6, 8, 34, 40], [40, 10, 90, 60], [20, 34, 44, 56], [70, 2, 92, 20]],
        [[4, 6, 50, 58], [34, 28, 62, 56], [14, 40, 32, 62]],
    ]
    labels = [[1, 2, 3, 1], [3, 2, 1]]
    seed = TRAINING_PICTURES[name]
    return [picture(seed, (64, 96)), picture(seed + 1, (64, 64))], boxes, labels


def directions(name, shape, n=4):
    """Random vectors that gradients are projected on."""
    return drawn(f"{name}.direction").standard_normal((n, *shape), np.float32)
