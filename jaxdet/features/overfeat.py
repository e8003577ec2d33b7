"""OverFeat's networks, on a crop or on every window of a larger picture.

b h w c  images in a batch, height, width, channels.    k  classes.

    picture -> layers 1 to 5 or 6 -> the last pooling, shifted -> dense layers on every window

The last pooling coarsens the windows' grid by its size p. Done at all p x p offsets, it gives that
many coarse maps, which interleave to one with the stride of the map before the pooling. That is the
same as pooling at every cell and taking a window's cells p apart, which is how it is computed here.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.features import dense, norm
from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv, flatten, max_pool
from jaxdet.geometry.receptive_field import Layer, ReceptiveField, receptive_field


class ConvLayer(NamedTuple):
    """A convolution with ReLU, and the pooling after it: windows of `pool` that do not overlap."""

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: int = 1
    norm: bool = False  # Whether there is batch norm before the ReLU.


class Design(NamedTuple):
    """An OverFeat in numbers."""

    layers: tuple[ConvLayer, ...]  # Up to the last pooling.
    hidden: tuple[int, ...]  # Widths of the classifier's hidden layers.
    size: int  # Side of the picture that the classifier reads, pixels.

    @property
    def pool(self) -> int:
        """Size of the last pooling."""
        return self.layers[-1].pool

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the map that the classifier reads, cells after the last pooling."""
        side = map_side(self.layers, self.size) // self.pool
        return side, side


FAST = Design(
    (
        ConvLayer(96, 11, stride=4, pool=2),
        ConvLayer(256, 5, pool=2),
        ConvLayer(512, 3, padding=1),
        ConvLayer(1024, 3, padding=1),
        ConvLayer(1024, 3, padding=1, pool=2),
    ),
    hidden=(3072, 4096),
    size=231,
)
ACCURATE = Design(
    (
        ConvLayer(96, 7, stride=2, pool=3),
        ConvLayer(256, 7, pool=2),
        ConvLayer(512, 3, padding=1),
        ConvLayer(512, 3, padding=1),
        ConvLayer(1024, 3, padding=1),
        ConvLayer(1024, 3, padding=1, pool=3),
    ),
    hidden=(4096, 4096),
    size=221,
)

# Not the paper's: for objects of a few dozen pixels. Without padding a window is its crop exactly.
SMALL = Design(
    (
        ConvLayer(32, 5, stride=2, norm=True),
        ConvLayer(64, 3, pool=2, norm=True),
        ConvLayer(192, 3, pool=2, norm=True),
    ),
    hidden=(256,),
    size=32,
)


class OverFeatFeatures(nn.Module):
    """The layers before the last pooling, which is left out: see `pooled`."""

    layers: tuple[ConvLayer, ...]
    axis_name: str | None = None
    """The mapped axis over which batch statistics are synchronized."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the last map, alone.

        Args:
          x: Normalized images; padding is zero.
          sizes: (height, width) of each picture within the canvas; no layer asks for them.
          train: Whether batch norm normalizes by the batch's statistics.
        """
        del sizes
        for i, layer in enumerate(self.layers):
            conv = Conv(
                layer.features,
                layer.kernel,
                layer.stride,
                padding=layer.padding,
                use_bias=not layer.norm,
                dtype=self.dtype,
                name=str(i),
            )
            x = conv(x)
            if layer.norm:
                # The fast variance, E[x^2] - E[x]^2, costs gradients their fourth digit.
                normalize = norm.BatchNorm(
                    axis_name=self.axis_name,
                    use_fast_variance=False,
                    dtype=self.dtype,
                    name=f"{i}_norm",
                )
                x = normalize(x, jnp.ones((*x.shape[:3], 1), bool), train=train)
            x = relu(x)
            if i + 1 < len(self.layers):
                x = max_pool(x, kernel_size=layer.pool, stride=layer.pool, padding=0)
        return (x,)


class OverFeat(nn.Module):
    """A classifier of pictures.

    Source:
      OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 3.2 and tables 1 (fast) and 3
      (accurate).
    """

    design: Design
    num_classes: int = 1000
    dropout: float = 0.5
    """Of the hidden layers."""
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        self.features = OverFeatFeatures(self.design.layers, self.axis_name, self.dtype)
        widths = (*self.design.hidden, self.num_classes)
        self.classifier = dense.DenseStack(widths, self.dropout, self.dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the last map; see `OverFeatFeatures`."""
        return self.features(x, sizes, train=train)

    def logits(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Any = None
    ) -> Float[Array, "b k"]:
        """Returns what the classifier says of pictures of the size that it reads.

        Args:
          x: Normalized images, `design.size` pixels wide and high.
          train: Whether there is dropout.
          keys: One an image, for dropout.
        """
        maps = self(x, jnp.full((len(x), 2), self.design.size, jnp.int32), train=train)[-1]
        return self.classifier(flatten(pooled(maps, self.design)), train=train, keys=keys)


def pooled(
    maps: Float[Array, "b h w c"], design: Design, *, fine: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Returns the map after the last pooling.

    Args:
      maps: From `OverFeatFeatures`.
      design: Of the network.
      fine: Whether windows begin at every cell, so that neighbours overlap.
    """
    stride = 1 if fine else design.pool
    return max_pool(maps, kernel_size=design.pool, stride=stride, padding=0)


def slide(
    maps: Float[Array, "b h w c"], layers: Sequence[dense.Layer], design: Design, *, fine: bool
) -> Float[Array, "b h2 w2 k"]:
    """Returns what dense layers say of every window of larger pictures.

    Args:
      maps: From `OverFeatFeatures`.
      layers: Of a `DenseStack`, in order: a classifier's, or a box regressor's.
      design: Of the network.
      fine: Whether the last pooling is done at all offsets, or at (0, 0) only.

    Returns:
      One vector a window; `window_field` says which pixels those are.

    Source:
      OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 3.3, steps a to e, and figure 3:
      offsets 0 to 2 along both axes, interleaved.
    """
    step = design.pool if fine else 1
    return dense.slide(pooled(maps, design, fine=fine), layers, design.window, step=step)


def window_field(design: Design, *, fine: bool) -> ReceptiveField:
    """Returns which pixels `slide`'s windows are.

    They are crops of `design.size` pixels as the classifier was trained on, the first one in the
    corner of the picture, also where the layers leave its last pixels unread. Padded layers let a
    window of a larger picture see more than that, where its crop would have zeros: logits of
    `FAST` and `ACCURATE` with random weights differ by up to their standard deviation.

    Args:
      design: Of the network.
      fine: As in `slide`.
    """
    chain = [*_chain(design.layers), Layer(design.window[0], dilation=design.pool)]
    field = receptive_field(chain)
    y, x = field.stride
    stride = field.stride if fine else (y * design.pool, x * design.pool)
    return ReceptiveField((design.size, design.size), stride, (design.size / 2, design.size / 2))


def _chain(layers: Sequence[ConvLayer]) -> list[Layer]:
    """All layers as windows, the last pooling at every cell."""
    chain = []
    for layer in layers:
        chain.append(Layer(layer.kernel, layer.stride, layer.padding))
        chain.append(Layer(layer.pool, layer.pool))
    return [*chain[:-1], chain[-1]._replace(stride=1)]


def map_side(layers: Sequence[ConvLayer], side: int) -> int:
    """Returns how many cells a map has before the last pooling, for so many pixels of a side."""
    for i, layer in enumerate(layers):
        side = (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        side = side // layer.pool if i + 1 < len(layers) else side
    return side


def n_windows(design: Design, side: int, *, fine: bool) -> int:
    """Returns how many windows there are along a side of so many pixels.

    Args:
      design: Of the network.
      side: Of the picture, pixels.
      fine: As in `slide`.
    """
    cells = map_side(design.layers, side)
    if fine:
        return max(0, cells - design.pool * design.window[0] + 1)
    return max(0, cells // design.pool - design.window[0] + 1)


def multiply_adds(
    design: Design, size: tuple[int, int], *, num_classes: int = 1000, fine: bool
) -> tuple[int, int]:
    """Counts what a picture costs.

    Args:
      design: Of the network.
      size: (height, width) of the picture, pixels.
      num_classes: Of the classifier.
      fine: As in `slide`.

    Returns:
      Multiplications (each with its addition) of the convolutions, and of the dense layers on all
      windows. Floating point operations are twice as many.
    """
    convs, channels = 0, 3
    for i, layer in enumerate(design.layers):
        # Before its own pooling.
        height, width = (map_side(design.layers[: i + 1], side) for side in size)
        convs += height * width * layer.kernel**2 * channels * layer.features
        channels = layer.features
    windows = n_windows(design, size[0], fine=fine) * n_windows(design, size[1], fine=fine)
    widths = [design.window[0] * design.window[1] * channels, *design.hidden, num_classes]
    return convs, windows * sum(a * b for a, b in itertools.pairwise(widths))
