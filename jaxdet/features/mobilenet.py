"""MobileNetV3: cheap convolutions, one channel or one pixel at a time.

b h w c  images in a batch, height, width, channels. C0 is the map after the first convolution, at
         stride 2; C1..C4 those right after the blocks that halve it, at strides 4, 8, 16 and 32;
         C5 that after the last convolution, at stride 32.
k        classes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv, ConvNorm
from jaxdet.features.norm import BatchNorm, valid_mask, whole

EPSILON = 1e-3  # Of norms.
Norm = Callable[..., Any]


class Setting(NamedTuple):
    """One row of the paper's tables."""

    kernel_size: int
    expanded: int  # Channels between the first and the last convolution.
    features: int  # Channels that leave the block.
    squeeze: bool  # Whether channels are weighed by what the whole map holds.
    activation: Callable[[Array], Array]
    stride: int


class SqueezeExcitation(nn.Module):
    """Weighs each channel by a number that all channels' means decide, padding included.

    Source:
      Hu et al. 2018 (arXiv:1709.01507), section 3; with a hard sigmoid in MobileNetV3 (Howard et
      al. 2019, arXiv:1905.02244), section 5.3.
    """

    squeezed: int
    """Channels of the hidden layer."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the weighed maps."""
        weight = x.mean((1, 2), keepdims=True)
        weight = relu(Conv(self.squeezed, 1, dtype=self.dtype, name="fc1")(weight))
        return x * nn.hard_sigmoid(Conv(x.shape[-1], 1, dtype=self.dtype, name="fc2")(weight))


class _Branch(nn.Module):
    """Expand, filter each channel by itself, squeeze, project: named 0, 1, ..."""

    setting: Setting
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask_in: Array, mask: Array, *, train: bool) -> Array:
        size, expanded, features, squeeze, activation, stride = self.setting
        conv = functools.partial(ConvNorm, norm=self.norm, activation=activation, dtype=self.dtype)
        index = 0
        if expanded != x.shape[-1]:
            x = conv(expanded, 1, name="0")(x, mask_in, train=train)
            index = 1
        depthwise = conv(expanded, size, stride=stride, groups=expanded, name=str(index))
        x = depthwise(x, mask, train=train)
        if squeeze:
            index += 1
            x = SqueezeExcitation(_multiple_of_8(expanded // 4), self.dtype, name=str(index))(x)
        project = conv(features, 1, activation=None, name=str(index + 1))
        return project(x, mask, train=train)


def _multiple_of_8(channels: int) -> int:
    """The nearest multiple of 8, or the next one where that loses more than a tenth."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """A block: wide inside, narrow outside, with a shortcut where the shape stays.

    Source:
      MobileNetV3 (Howard et al. 2019, arXiv:1905.02244), figure 4.
    """

    setting: Setting
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        mask_in: Bool[Array, "b h w 1"],
        mask: Bool[Array, "b h2 w2 1"],
        *,
        train: bool,
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns the block's output; the masks are at the resolutions of `x` and of it."""
        branch = _Branch(self.setting, self.norm, self.dtype, name="block")
        y = branch(x, mask_in, mask, train=train)
        return x + y if x.shape == y.shape else y


class MobileNetV3Features(nn.Module):
    """The convolutional part, as far as a detector reads it.

    As in torchvision's `mobilenet_backbone`, stages begin with what C0..C5 are the maps of: C1 is
    the map after the first layer of its stage, not the last.
    """

    stem: int
    """Channels of the first convolution."""
    settings: tuple[Setting, ...]
    norm: Norm = functools.partial(BatchNorm, epsilon=EPSILON, momentum=0.99)
    n_stages: int = 6
    """Maps that are made, from C0 on; layers after the last of them are left out."""
    n_frozen: int = 0
    """Stages that are not trained: 6 minus torchvision's `trainable_layers`."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C0, C1, ...), one map a stage.

        Args:
          x: Normalized images; padding is zero.
          sizes: (height, width) of each picture within the canvas.
          train: Whether norms use (and move) the statistics of the batch.
        """
        begins = self._begins()
        n_frozen_layers = (*begins, len(self.settings) + 2)[self.n_frozen]
        conv = functools.partial(
            ConvNorm, norm=self.norm, activation=nn.hard_swish, dtype=self.dtype
        )
        stride, mask, maps = 2, valid_mask(sizes, _halved(x), stride=2), []
        for i in range(begins[self.n_stages - 1] + 1):
            trained = train and i >= n_frozen_layers
            if i == 0:
                x = conv(self.stem, 3, stride=2, name="0")(x, mask, train=trained)
            elif i <= len(self.settings):
                setting, mask_in = self.settings[i - 1], mask
                if setting.stride == 2:
                    stride *= 2
                    mask = valid_mask(sizes, _halved(x), stride=stride)
                block = InvertedResidual(setting, self.norm, self.dtype, name=str(i))
                x = block(x, mask_in, mask, train=trained)
            else:
                x = conv(6 * x.shape[-1], 1, name=str(i))(x, mask, train=trained)
            x = jax.lax.stop_gradient(x) if i < n_frozen_layers else x
            if i in begins:
                maps.append(x)
        return tuple(maps)

    def _begins(self) -> list[int]:
        """Numbers of the layers with which stages begin."""
        strided = [i for i, setting in enumerate(self.settings, start=1) if setting.stride == 2]
        return [0, *strided, len(self.settings) + 1]


def _halved(x: Array) -> tuple[int, int]:
    return -(-x.shape[1] // 2), -(-x.shape[2] // 2)


class _Classifier(nn.Module):
    """Two layers; activation and dropout count in their numbers."""

    hidden: int
    num_classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        x = nn.hard_swish(nn.Dense(self.hidden, dtype=self.dtype, name="0")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="3")(x)
        return x, logits.astype(jnp.float32)


class MobileNetV3(nn.Module):
    """The network of torchvision's `mobilenet_v3_large` and `mobilenet_v3_small`.

    Source:
      Howard et al. 2019 (arXiv:1905.02244), tables 1 and 2.
    """

    features: nn.Module
    """A `MobileNetV3Features`; by itself it is the backbone of a detector."""
    hidden: int
    """Channels between the classifier's two layers."""
    num_classes: int = 1000
    dropout: float = 0.2
    """Of the hidden layer; with `train` it needs a key named dropout."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the classifier."""
        self.classifier = _Classifier(self.hidden, self.num_classes, self.dropout, self.dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C0, ..., C5); see `MobileNetV3Features`."""
        return self.features(x, sizes, train=train)

    def head(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Returns what the last layer reads, and its logits, of the maps of whole canvases."""
        return self.classifier(maps[-1].mean((1, 2)), train=train)

    def logits(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        """Returns what the classifier says of pictures that fill their canvas."""
        return self.head(self(x, whole(x), train=train), train=train)[1]


_RE, _HS = relu, nn.hard_swish
_LARGE = (
    Setting(3, 16, 16, False, _RE, 1),
    Setting(3, 64, 24, False, _RE, 2),
    Setting(3, 72, 24, False, _RE, 1),
    Setting(5, 72, 40, True, _RE, 2),
    Setting(5, 120, 40, True, _RE, 1),
    Setting(5, 120, 40, True, _RE, 1),
    Setting(3, 240, 80, False, _HS, 2),
    Setting(3, 200, 80, False, _HS, 1),
    Setting(3, 184, 80, False, _HS, 1),
    Setting(3, 184, 80, False, _HS, 1),
    Setting(3, 480, 112, True, _HS, 1),
    Setting(3, 672, 112, True, _HS, 1),
    Setting(5, 672, 160, True, _HS, 2),
    Setting(5, 960, 160, True, _HS, 1),
    Setting(5, 960, 160, True, _HS, 1),
)
_SMALL = (
    Setting(3, 16, 16, True, _RE, 2),
    Setting(3, 72, 24, False, _RE, 2),
    Setting(3, 88, 24, False, _RE, 1),
    Setting(5, 96, 40, True, _HS, 2),
    Setting(5, 240, 40, True, _HS, 1),
    Setting(5, 240, 40, True, _HS, 1),
    Setting(5, 120, 48, True, _HS, 1),
    Setting(5, 144, 48, True, _HS, 1),
    Setting(5, 288, 96, True, _HS, 2),
    Setting(5, 576, 96, True, _HS, 1),
    Setting(5, 576, 96, True, _HS, 1),
)


def mobilenet_v3_large(
    *,
    num_classes: int = 1000,
    dropout: float = 0.2,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> MobileNetV3:
    """Returns the large network of torchvision.

    Args:
      num_classes: Of the classifier.
      dropout: Of the classifier.
      dtype: Of all layers.
      fields: Of `MobileNetV3Features`.
    """
    features = MobileNetV3Features(16, _LARGE, dtype=dtype, **fields)
    return MobileNetV3(features, 1280, num_classes, dropout, dtype)


def mobilenet_v3_small(
    *,
    num_classes: int = 1000,
    dropout: float = 0.2,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> MobileNetV3:
    """Returns the small network of torchvision.

    Args:
      num_classes: Of the classifier.
      dropout: Of the classifier.
      dtype: Of all layers.
      fields: Of `MobileNetV3Features`.
    """
    features = MobileNetV3Features(16, _SMALL, dtype=dtype, **fields)
    return MobileNetV3(features, 1024, num_classes, dropout, dtype)
