"""Residual networks, the backbones of most detectors here.

b h w c  images in a batch, height, width, channels. C2..C5 are the maps after the four stages, at
strides 4, 8, 16 and 32. Module names are torchvision's: layer1 makes C2.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv, ConvNorm, max_pool
from jaxdet.features.norm import BatchNorm, valid_mask, whole

Norm = Callable[..., Any]
Block = Callable[..., Any]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    width: int
    stride: int
    norm: Norm
    dtype: Any = jnp.float32
    expansion = 1

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
        del mask_in
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        y = conv(self.width, 3, self.stride, name="conv1")(x)
        y = relu(self.norm(name="bn1")(y, mask, train=train))
        y = conv(self.width, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=nn.initializers.zeros)(y, mask, train=train)
        return relu(y + _shortcut(self, x, y, mask, train=train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50 and deeper).

    Departures:
      The stride is in the 3x3 convolution (the "1.5" variant of torchvision), not the first 1x1.
    """

    width: int
    stride: int
    norm: Norm
    dtype: Any = jnp.float32
    groups: int = 1
    """Of the 3x3 convolution."""
    width_per_group: int = 64
    """Channels of a group, for a width of 64."""
    expansion = 4

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
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        inner = self.width * self.width_per_group // 64 * self.groups
        y = conv(inner, 1, name="conv1")(x)
        y = relu(self.norm(name="bn1")(y, mask_in, train=train))
        y = conv(inner, 3, self.stride, groups=self.groups, name="conv2")(y)
        y = relu(self.norm(name="bn2")(y, mask, train=train))
        y = conv(self.width * self.expansion, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=nn.initializers.zeros)(y, mask, train=train)
        return relu(y + _shortcut(self, x, y, mask, train=train))


def _shortcut(block: Any, x: Array, y: Array, mask: Array, *, train: bool) -> Array:
    """The identity, or a projection (option B of the paper) where the shape changes."""
    if x.shape == y.shape:
        return x
    project = ConvNorm(
        y.shape[-1],
        1,
        block.norm,
        block.stride,
        activation=None,
        dtype=block.dtype,
        name="downsample",
        parent=block,
    )
    return project(x, mask, train=train)


class _Stage(nn.Module):
    """Blocks at one resolution, named 0, 1, ..."""

    block: Block
    n_blocks: int
    width: int
    stride: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask_in: Array, mask: Array, *, train: bool) -> Array:
        for i in range(self.n_blocks):
            stride = self.stride if i == 0 else 1
            block = self.block(self.width, stride, self.norm, self.dtype, name=str(i))
            x = block(x, mask_in if i == 0 else mask, mask, train=train)
        return x


class ResNet(nn.Module):
    """A residual network, up to the last stage asked for.

    Source:
      He et al. 2016 (arXiv:1512.03385), table 1.

    Departures:
      The last norm of each residual branch starts at zero (Goyal et al. 2017, arXiv:1706.02677,
      section 5.1): deep networks then start as shallow ones.
    """

    stage_sizes: tuple[int, ...]
    block: Block
    width: int = 64
    norm: Norm = BatchNorm
    n_frozen: int = 0
    """Stem and stages that are not trained: 1 is the stem alone, 2 the stem and C2, ..."""
    num_classes: int = 1000
    """Of `logits`, whose layer is made where it is asked for."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the classifier."""
        self.fc = nn.Dense(self.num_classes, dtype=self.dtype)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C2, C3, ...), one map a stage.

        Args:
          x: Normalized images; padding is zero.
          sizes: (height, width) of each picture within the canvas.
          train: Whether norms use (and move) the statistics of the batch.
        """
        norm = functools.partial(self.norm, dtype=self.dtype)
        x = Conv(self.width, 7, 2, use_bias=False, dtype=self.dtype, name="conv1")(x)
        mask = valid_mask(sizes, (x.shape[1], x.shape[2]), stride=2)
        x = max_pool(relu(norm(name="bn1")(x, mask, train=train and self.n_frozen < 1)))
        x = jax.lax.stop_gradient(x) if self.n_frozen > 0 else x
        mask = valid_mask(sizes, (x.shape[1], x.shape[2]), stride=4)
        maps = []
        for i, n_blocks in enumerate(self.stage_sizes):
            stride = 1 if i == 0 else 2
            shape = (-(-x.shape[1] // stride), -(-x.shape[2] // stride))
            mask_in, mask = mask, valid_mask(sizes, shape, stride=4 * 2**i)
            stage = _Stage(
                self.block,
                n_blocks,
                self.width * 2**i,
                stride,
                norm,
                self.dtype,
                name=f"layer{i + 1}",
            )
            x = stage(x, mask_in, mask, train=train and self.n_frozen < i + 2)
            # Frozen maps too are read by pyramids, and would pass gradients on.
            x = jax.lax.stop_gradient(x) if self.n_frozen > i + 1 else x
            maps.append(x)
        return tuple(maps)

    def head(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Returns what the last layer reads, and its logits, of the maps of whole canvases."""
        del train
        x = maps[-1].mean((1, 2))
        return x, self.fc(x).astype(jnp.float32)

    def logits(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        """Returns what the classifier says of pictures that fill their canvas."""
        return self.head(self(x, whole(x), train=train), train=train)[1]


def resnet(
    depth: int,
    *,
    n_stages: int = 4,
    groups: int = 1,
    width_per_group: int = 64,
    **fields: Any,
) -> ResNet:
    """Returns a residual network of torchvision.

    ResNeXt-50 32x4d is depth 50 with 32 groups of 4, ResNeXt-101 32x8d and 64x4d likewise; Wide
    ResNet-50-2 and -101-2 have one group of 128.

    Args:
      depth: 18, 34, 50, 101 or 152 layers.
      n_stages: How many of the four stages there are.
      groups: Of the 3x3 convolutions; from 50 layers on.
      width_per_group: Their channels in the first stage; from 50 layers on.
      fields: Of `ResNet`.

    Source:
      ResNeXt: Xie et al. 2017 (arXiv:1611.05431), table 1. Wide: Zagoruyko & Komodakis 2016
      (arXiv:1605.07146), table 1.
    """
    table = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }
    if depth not in table:
        raise ValueError(f"`depth` must be one of {sorted(table)}. Got {depth}.")
    block, stage_sizes = table[depth]
    if (groups, width_per_group) != (1, 64):
        if block is BasicBlock:
            raise ValueError(f"`groups` and `width_per_group` need `depth` >= 50. Got {depth}.")
        block = functools.partial(block, groups=groups, width_per_group=width_per_group)
    return ResNet(stage_sizes=stage_sizes[:n_stages], block=block, **fields)
