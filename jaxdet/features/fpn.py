"""From a backbone's stages to the maps that a detector reads.

b h w c  images in a batch, height, width, channels. C2..C5 come from the backbone; P2..P6 go to the
detector, finest first.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv, ConvNorm, FirstOfSequence

lecun_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class _Blocks(nn.Module):
    """One convolution a level."""

    features: int
    kernel_size: int
    norm: Callable[..., Any] | None
    dtype: Any

    @nn.compact
    def __call__(self, maps: list[Array], *, train: bool) -> list[Array]:
        layer = (self.features, self.kernel_size)
        if self.norm is None:
            return [
                FirstOfSequence(*layer, lecun_uniform, self.dtype, name=str(i))(x)
                for i, x in enumerate(maps)
            ]
        conv = functools.partial(
            ConvNorm,
            *layer,
            self.norm,
            activation=None,
            kernel_init=lecun_uniform,
            dtype=self.dtype,
        )
        # Padding counts, as in torchvision.
        everywhere = [jnp.ones((*x.shape[:3], 1), bool) for x in maps]
        return [
            conv(name=str(i))(x, mask, train=train)
            for i, (x, mask) in enumerate(zip(maps, everywhere, strict=True))
        ]


class FPN(nn.Module):
    """Feature pyramid: coarse maps, which know what, are added to fine ones, which know where.

        P_l = conv3x3(M_l),   M_l = conv1x1(C_l) + upsample(M_{l+1})

    Source:
      Lin et al. 2017 (arXiv:1612.03144v2), section 3.
    """

    features: int = 256
    extra_level: bool = True
    """Whether a last level is added by taking every second cell (P6 of the paper)."""
    extra_blocks: nn.Module | None = None
    """Makes further levels of (P5, C5), such as `LastLevelP6P7`, which wants no `extra_level`."""
    norm: Callable[..., Any] | None = None
    """Of every convolution, which then has no bias; see `features.norm`."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool = False
    ) -> tuple[Array, ...]:
        """Returns one map of `features` channels a level, finest first."""
        layers = (self.norm, self.dtype)
        lateral = _Blocks(self.features, 1, *layers, name="inner_blocks")(list(maps), train=train)
        for i in reversed(range(len(lateral) - 1)):
            above = lateral[i + 1]
            for axis in (1, 2):
                above = _nearest(above, lateral[i].shape[axis], axis=axis)
            lateral[i] = lateral[i] + above
        out = _Blocks(self.features, 3, *layers, name="layer_blocks")(lateral, train=train)
        if self.extra_level:
            out.append(out[-1][:, ::2, ::2])
        if self.extra_blocks is not None:
            out += self.extra_blocks(out[-1], maps[-1])
        return tuple(out)


class LastLevelP6P7(nn.Module):
    """Two levels more, each from the one before it by a convolution.

        P6 = conv(C5),   P7 = conv(relu(P6))

    Source:
      RetinaNet (Lin et al. 2017, arXiv:1708.02002v2), section 4, footnote 2.
    """

    features: int = 256
    from_pyramid: bool = False
    """Whether P6 is made of P5, as in torchvision's `retinanet_resnet50_fpn`, and not of C5."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, p5: Float[Array, "b h w c"], c5: Float[Array, "b h w c2"]
    ) -> tuple[Float[Array, "b _ _ _"], Float[Array, "b _ _ _"]]:
        """Returns (P6, P7)."""
        conv = functools.partial(
            Conv, self.features, stride=2, kernel_init=lecun_uniform, dtype=self.dtype
        )
        p6 = conv(name="p6")(p5 if self.from_pyramid else c5)
        return p6, conv(name="p7")(relu(p6))


def _nearest(x: Array, size: int, *, axis: int) -> Array:
    """Reads cell floor(i n / size) of the n along an axis for every i < size.

    The product is torch's, whose rounding decides where it is nearly a whole number.
    """
    n = x.shape[axis]
    cells = (np.arange(size, dtype=np.float32) * np.float32(n / size)).astype(int)
    times = -(-size // n)
    if np.array_equal(cells, np.arange(size) // times):
        # Nearly always: the gradient of repeating is a sum, that of reading a scatter.
        return jax.lax.slice_in_dim(jnp.repeat(x, times, axis=axis), 0, size, axis=axis)
    return jnp.take(x, cells, axis=axis)


class PyramidBackbone(nn.Module):
    """A backbone and its feature pyramid."""

    body: nn.Module
    fpn: nn.Module
    first_stage: int = 0
    """Maps of the body before this one are left out of the pyramid; of a ResNet, 0 is C2."""

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Array, ...]:
        """Returns the pyramid, finest first."""
        return self.fpn(self.body(x, sizes, train=train)[self.first_stage :], train=train)


class SingleLevelBackbone(nn.Module):
    """A backbone whose last map alone is read, as before feature pyramids."""

    body: nn.Module

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Array, ...]:
        """Returns a pyramid of one level."""
        return self.body(x, sizes, train=train)[-1:]
