"""VGG: 3x3 convolutions, and a pooling that halves the map after each stage of them.

b h w c  images in a batch, height, width, channels. C1..C5 are the maps after the five stages,
         before their pooling, at strides 1, 2, 4, 8 and 16.
k        classes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv, adaptive_avg_pool, flatten, max_pool
from jaxdet.features.norm import valid_mask, whole


class VGGFeatures(nn.Module):
    """The convolutional part. Layers are numbered as in torchvision: ReLU and pooling count."""

    stages: tuple[tuple[int, ...], ...]
    """Channels of each convolution."""
    norm: Callable[..., Any] | None = None
    """After each convolution, see `features.norm`; convolutions have a bias all the same."""
    n_frozen: int = 0
    """Stages that are not trained."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C1, C2, ...), one map a stage.

        Args:
          x: Normalized images; padding is zero.
          sizes: (height, width) of each picture within the canvas.
          train: Whether norms use (and move) the statistics of the batch.
        """
        maps, index = [], 0
        for i, stage in enumerate(self.stages):
            frozen = i < self.n_frozen
            mask = valid_mask(sizes, (x.shape[1], x.shape[2]), stride=2**i)
            for features in stage:
                x = Conv(features, dtype=self.dtype, name=str(index))(x)
                if self.norm is not None:
                    index += 1
                    norm = self.norm(name=str(index), dtype=self.dtype)
                    x = norm(x, mask, train=train and not frozen)
                x = relu(x)
                index += 2
            x = jax.lax.stop_gradient(x) if frozen else x
            maps.append(x)
            x = _pool(x) if i + 1 < len(self.stages) else x
            index += 1
        return tuple(maps)


def _pool(x: Array) -> Array:
    """Halves a map; an odd last row or column is dropped."""
    return max_pool(x, kernel_size=2, stride=2, padding=0)


class _Classifier(nn.Module):
    """Three layers; ReLU and dropout count in their numbers."""

    num_classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        for name in ("0", "3"):
            x = relu(nn.Dense(4096, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="6")(x)
        return x, logits.astype(jnp.float32)


class VGG(nn.Module):
    """The network of torchvision's `vgg11` to `vgg19_bn`.

    Source:
      Simonyan & Zisserman 2015 (arXiv:1409.1556), table 1, columns A, B, D and E.

    Departures:
      Maps of any size are averaged to 7 x 7 before the first dense layer, as torchvision does.
    """

    features: nn.Module
    """A `VGGFeatures`; by itself it is the backbone of a detector."""
    num_classes: int = 1000
    dropout: float = 0.5
    """Of the two hidden layers; with `train` it needs a key named dropout."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the classifier."""
        self.classifier = _Classifier(self.num_classes, self.dropout, self.dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C1, ..., C5); see `VGGFeatures`."""
        return self.features(x, sizes, train=train)

    def head(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Returns what the last layer reads, and its logits, of the maps of whole canvases."""
        x = adaptive_avg_pool(_pool(maps[-1]), (7, 7))
        return self.classifier(flatten(x), train=train)

    def logits(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        """Returns what the classifier says of pictures that fill their canvas."""
        return self.head(self(x, whole(x), train=train), train=train)[1]


def vgg(
    depth: int,
    *,
    num_classes: int = 1000,
    dropout: float = 0.5,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> VGG:
    """Returns a VGG of torchvision, which with `norm=BatchNorm` is its `_bn` one.

    Args:
      depth: 11, 13, 16 or 19 layers.
      num_classes: Of the classifier.
      dropout: Of the classifier.
      dtype: Of all layers.
      fields: Of `VGGFeatures`.
    """
    table = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
    if depth not in table:
        raise ValueError(f"`depth` must be one of {sorted(table)}. Got {depth}.")
    widths = (64, 128, 256, 512, 512)
    stages = tuple((width,) * n for width, n in zip(widths, table[depth], strict=True))
    features = VGGFeatures(stages, dtype=dtype, **fields)
    return VGG(features, num_classes, dropout, dtype)
