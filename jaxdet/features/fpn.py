"""From a backbone's stages to the maps that a detector reads.

b h w c  images in a batch, height, width, channels. C2..C5 come from the backbone; P2..P6 go to the
detector, finest first.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet.features.conv import FirstOfSequence

lecun_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class _Blocks(nn.Module):
    """One convolution a level."""

    features: int
    kernel_size: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: list[Array]) -> list[Array]:
        return [
            FirstOfSequence(
                self.features, self.kernel_size, lecun_uniform, self.dtype, name=str(i)
            )(x)
            for i, x in enumerate(maps)
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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "b _ _ _"], ...]) -> tuple[Array, ...]:
        """Returns one map of `features` channels a level, finest first."""
        lateral = _Blocks(self.features, 1, self.dtype, name="inner_blocks")(list(maps))
        for i in reversed(range(len(lateral) - 1)):
            lateral[i] = lateral[i] + _double(lateral[i + 1], lateral[i].shape)
        out = _Blocks(self.features, 3, self.dtype, name="layer_blocks")(lateral)
        if self.extra_level:
            out.append(out[-1][:, ::2, ::2])
        return tuple(out)


def _double(x: Array, shape: tuple[int, ...]) -> Array:
    """Every cell of `x` four times; a last row or column too many (odd sizes) is cut."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : shape[1], : shape[2]]


class PyramidBackbone(nn.Module):
    """A backbone and its feature pyramid."""

    body: nn.Module
    fpn: nn.Module
    first_stage: int = 0
    """Stages before this one (0 is C2) are left out of the pyramid."""

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Array, ...]:
        """Returns the pyramid, finest first."""
        return self.fpn(self.body(x, sizes, train=train)[self.first_stage :])


class SingleLevelBackbone(nn.Module):
    """A backbone whose last map alone is read, as before feature pyramids."""

    body: nn.Module

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Array, ...]:
        """Returns a pyramid of one level."""
        return self.body(x, sizes, train=train)[-1:]
