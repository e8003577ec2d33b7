"""What tests of backbones and the maker of their numbers share: NumPy alone, for torch has no jax.

Made by tests/golden/make_backbones.py, which draws weights with these functions too.
"""

import math
import pathlib
import zlib

import numpy as np

PATH = pathlib.Path(__file__).parents[1] / "golden/backbones.npz"
MODELS = (
    "alexnet",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "googlenet",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("mobilenet_v3_large", "mobilenet_v3_small"),
)
CLASSES = slice(None, None, 100)  # Of 1000, those whose logits are compared.
# Feature maps (height, width, channels) for pyramids: halves, equal sizes, and another ratio.
PYRAMIDS = {
    "odd": ((13, 9, 6), (7, 5, 10), (4, 3, 16)),
    "equal": ((8, 6, 6), (4, 3, 10), (4, 3, 16)),
    "ratio": ((17, 14, 6), (5, 4, 10), (3, 4, 16)),
}
# Steps of stochastic gradient descent beside torch.
TRAINING = {"steps": 10, "learning_rate": 0.003, "momentum": 0.9, "batch": 6, "size": 64}


def draw(name: str) -> np.random.Generator:
    """A generator that only the name decides on."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of torch's name and layout, such that signals neither vanish nor explode."""
    uniform = 2 * draw(name).random(shape, np.float32) - 1
    if name.endswith("running_var"):
        return 1.25 + 0.75 * uniform
    if name.endswith(("running_mean", "bias")):
        return 0.2 * uniform
    if len(shape) == 1:
        # The last norm of a residual branch: the sum grows from block to block.
        return (1 + 0.5 * uniform) * np.float32(0.3 if ".bn3." in name else 1)
    return uniform * np.float32(math.sqrt(6 / math.prod(shape[1:])))


def pictures(*shape: int) -> np.ndarray:
    """Normalized images, [b, h, w, c]."""
    return draw("pictures").standard_normal(shape, np.float32)


def state_dict(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The weights of a model whose names and shapes are rows like "conv1.weight 64 3 7 7"."""
    split = [row.split() for row in rows.tolist()]
    return {name: weight(name, tuple(map(int, shape))) for name, *shape in split}


def summary(x: np.ndarray) -> np.ndarray:
    """Some numbers [b, 3, 8] of a map [b, h, w, c]: means, and the cells in the middle and last."""
    x = x[..., :: x.shape[-1] // 8][..., :8]
    return np.stack([x.mean((1, 2)), x[:, x.shape[1] // 2, x.shape[2] // 2], x[:, -1, -1]], 1)
