"""AlexNet, the first deep network of R-CNN and its kin.

b h w c  images in a batch, height, width, channels. C1, C2 and C5 are the maps before the three
         poolings, at strides 4, 8 and 16.
k        classes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv, adaptive_avg_pool, flatten, max_pool
from jaxdet.features.norm import whole

_pool = functools.partial(max_pool, padding=0)


class AlexNetFeatures(nn.Module):
    """The convolutional part. Layers are numbered as in torchvision: ReLU and pooling count."""

    n_frozen: int = 0
    """Of C1, C2 and C5, how many are not trained."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C1, C2, C5).

        Args:
          x: Normalized images; padding is zero.
          sizes: (height, width) of each picture within the canvas; no layer asks for them.
          train: No layer asks for it.
        """
        del sizes, train
        conv = functools.partial(Conv, dtype=self.dtype)
        stages = (
            [conv(64, 11, 4, padding=2, name="0")],
            [conv(192, 5, name="3")],
            [conv(384, name="6"), conv(256, name="8"), conv(256, name="10")],
        )
        maps = []
        for i, layers in enumerate(stages):
            x = _pool(x) if i else x
            for layer in layers:
                x = relu(layer(x))
            x = jax.lax.stop_gradient(x) if i < self.n_frozen else x
            maps.append(x)
        return tuple(maps)


class _Classifier(nn.Module):
    """Three layers; dropout and ReLU count in their numbers."""

    num_classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        for name in ("1", "4"):
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = relu(nn.Dense(4096, dtype=self.dtype, name=name)(x))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="6")(x)
        return x, logits.astype(jnp.float32)


class AlexNet(nn.Module):
    """The network of torchvision's `alexnet`.

    Source:
      Krizhevsky 2014 (arXiv:1404.5997), footnote 1 on page 5; torchvision's alexnet.py.

    Departures:
      As in torchvision, the fourth layer has 256 channels where the paper says 384, there is no
      response normalization, dropout comes before the hidden layers, and maps of any size are
      averaged to 6 x 6 for them.
    """

    features: nn.Module
    """An `AlexNetFeatures`; by itself it is the backbone of a detector."""
    num_classes: int = 1000
    dropout: float = 0.5
    """Of what the two hidden layers read; with `train` it needs a key named dropout."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the classifier."""
        self.classifier = _Classifier(self.num_classes, self.dropout, self.dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C1, C2, C5); see `AlexNetFeatures`."""
        return self.features(x, sizes, train=train)

    def head(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Returns what the last layer reads, and its logits, of the maps of whole canvases."""
        x = adaptive_avg_pool(_pool(maps[-1]), (6, 6))
        return self.classifier(flatten(x), train=train)

    def logits(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        """Returns what the classifier says of pictures that fill their canvas."""
        return self.head(self(x, whole(x), train=train), train=train)[1]


def alexnet(
    *,
    num_classes: int = 1000,
    dropout: float = 0.5,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> AlexNet:
    """Returns the AlexNet of torchvision.

    Args:
      num_classes: Of the classifier.
      dropout: Of the classifier.
      dtype: Of all layers.
      fields: Of `AlexNetFeatures`.
    """
    return AlexNet(AlexNetFeatures(dtype=dtype, **fields), num_classes, dropout, dtype)
