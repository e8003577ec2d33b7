"""Convolution and pooling with torch's padding.

b h w c  images in a batch, height, width, channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdet.features import fast_conv
from jaxdet.features.activations import relu

# Traced once a shape: linen asks for the shape of a layer's parameters each time it is applied.
he_normal = jax.jit(
    nn.initializers.variance_scaling(2.0, "fan_out", "normal"), static_argnums=(1, 2)
)


class Conv(nn.Module):
    """2-D convolution, padded by `kernel_size // 2` on every side if nothing else is asked for.

    XLA's "SAME" pads stride-2 layers on one side only, half a pixel away from torch's result. A
    1x1 convolution is a matrix product: on CPU its weight gradient is several times faster so.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., Any] = he_normal
    dtype: Any = jnp.float32
    padding: int | None = None
    """Rows and columns of zeros on every side."""
    groups: int = 1
    """Parts of the channels, in order, that do not see each other."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Returns the filtered maps; by default h2, w2 are ceil(h / stride), ceil(w / stride)."""
        size, stride = self.kernel_size, self.stride
        if size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd. Got {size}.")
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        padding = size // 2 if self.padding is None else self.padding
        if self.groups > 1:
            x = fast_conv.grouped_conv(
                x, kernel, stride=stride, padding=padding, groups=self.groups
            )
        elif size == 1 and padding == 0:
            x = x[:, ::stride, ::stride] if stride > 1 else x
            # Flat, or the gradient is transposed by a slow loop before the kernel's is computed.
            rows = jax.lax.dot(x.reshape(-1, x.shape[-1]), kernel.reshape(shape[2:]))
            x = rows.reshape(*x.shape[:3], -1)
        else:
            x = fast_conv.conv(x, kernel, stride=stride, padding=padding)
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


class ConvNorm(nn.Module):
    """A convolution without bias, a norm and an activation."""

    features: int
    kernel_size: int
    norm: Callable[..., Any]
    """See `features.norm`."""
    stride: int = 1
    groups: int = 1
    activation: Callable[[Array], Array] | None = relu
    kernel_init: Callable[..., Any] = he_normal
    names: tuple[str, str] = ("0", "1")
    """Of the convolution and the norm in torchvision."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b h2 w2 1"], *, train: bool
    ) -> Float[Array, "b h2 w2 c2"]:
        """Returns the normed maps; the mask is at their resolution."""
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            groups=self.groups,
            name=self.names[0],
        )
        x = self.norm(name=self.names[1], dtype=self.dtype)(conv(x), mask, train=train)
        return x if self.activation is None else self.activation(x)


def max_pool(
    x: Float[Array, "b h w c"],
    *,
    kernel_size: int = 3,
    stride: int = 2,
    padding: int = 1,
    ceil_mode: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """Maximum over square windows; by default [b, ceil(h / 2), ceil(w / 2), c].

    Equal to `nn.max_pool` as a maximum of shifted slices. The gradient of `reduce_window` takes ten
    times longer on CPU and has no deterministic form on GPU. Equal values share the gradient.

    Args:
      x: Feature maps.
      kernel_size: Side of a window, cells.
      stride: From one window to the next, cells.
      padding: Cells on every side that no window takes its value from.
      ceil_mode: Whether a last window may hang over the far border, as torch allows it to.
    """
    for axis in (1, 2):
        # A window must begin inside the map or the padding before it.
        room = x.shape[axis] + 2 * padding - kernel_size
        last = (-(-room // stride) if ceil_mode else room // stride) * stride
        last -= stride if last >= x.shape[axis] + padding else 0
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (padding, last + kernel_size - x.shape[axis] - padding, 0)
        padded = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
        slices = [
            jax.lax.slice_in_dim(padded, i, i + last + 1, stride=stride, axis=axis)
            for i in range(kernel_size)
        ]
        x = functools.reduce(jnp.maximum, slices)
    return x


def adaptive_avg_pool(
    x: Float[Array, "b h w c"], shape: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Averages over `shape` bins, which overlap where they do not divide the map, as torch's do.

    bin i of n covers the rows floor(i h / n) ... ceil((i + 1) h / n) - 1
    """
    rows, columns = (
        jnp.asarray(_bins(*sides), jnp.float32) for sides in zip(x.shape[1:3], shape, strict=True)
    )
    y = jnp.einsum(
        "ih,jw,bhwc->bijc",
        rows,
        columns,
        x.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y.astype(x.dtype)


def _bins(size: int, n: int) -> np.ndarray:
    """The share [n, size] that each cell has in each bin's average."""
    cells, bins = np.arange(size), np.arange(n)[:, None]
    inside = (bins * size // n <= cells) & (cells < -(-(bins + 1) * size // n))
    return inside / inside.sum(axis=1, keepdims=True)


def flatten(x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    """Returns one vector an image, channel by channel, which is torch's order."""
    return jax.lax.collapse(jnp.moveaxis(x, -1, 1), 1)
