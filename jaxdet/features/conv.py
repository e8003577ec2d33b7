"""Convolution and pooling with torch's padding, written so that their gradients are fast.

b h w c  images in a batch, height, width, channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """2-D convolution, padded by `kernel_size // 2` on every side.

    XLA's "SAME" pads stride-2 layers on one side only, half a pixel away from torch's result. A
    1x1 convolution is a matrix product: on CPU its weight gradient is several times faster so.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., Any] = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Returns the filtered maps, [b, ceil(h / stride), ceil(w / stride), features]."""
        size, stride = self.kernel_size, self.stride
        if size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd. Got {size}.")
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if size == 1:
            x = x[:, ::stride, ::stride] @ kernel[0, 0]
        else:
            pads = [(size // 2, size // 2)] * 2
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x + bias.reshape(1, 1, 1, -1)


class FirstOfSequence(nn.Module):
    """A convolution that torchvision keeps as the first layer of a sequence: `NAME.0`."""

    features: int
    kernel_size: int
    kernel_init: Callable[..., Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """Returns the filtered maps, with a bias."""
        conv = Conv(
            self.features,
            self.kernel_size,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="0",
        )
        return conv(x)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum over 3x3 windows at stride 2, padded by 1: [b, ceil(h / 2), ceil(w / 2), c].

    Equal to `nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))` as a maximum of shifted slices. The
    gradient of `reduce_window` takes ten times longer on CPU and has no deterministic form on GPU.
    Equal values share the gradient.
    """
    return _max_of_three(_max_of_three(x, axis=1), axis=2)


def _max_of_three(x: Array, *, axis: int) -> Array:
    """Maximum over windows of 3 at stride 2 along one axis, padded by 1."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (1, 1, 0)
    padded = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
    last = (x.shape[axis] - 1) // 2 * 2
    slices = [jax.lax.slice_in_dim(padded, i, i + last + 1, stride=2, axis=axis) for i in range(3)]
    return functools.reduce(jnp.maximum, slices)
