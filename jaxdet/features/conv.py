"""Convolution and pooling with torch's padding, written so that their gradients are fast.

b h w c  images in a batch, height, width, channels.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

STRIP_VALUES = 1 << 18  # Of the maps that are read in one piece where that is faster on CPU.

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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
            x = _grouped_conv(x, kernel, stride=stride, padding=padding, groups=self.groups)
        elif size == 1:
            x = x[:, ::stride, ::stride]
            # Flat, or the gradient is transposed by a slow loop before the kernel's is computed.
            rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
            x = rows.reshape(*x.shape[:3], -1)
        else:
            x = _conv(x, kernel, stride=stride, padding=padding)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x + bias.reshape(1, 1, 1, -1)


def _conv(x: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    """A convolution; on CPU the gradient of a large one's kernel is computed by `_by_strips`."""
    is_large = x.size >= 2 * STRIP_VALUES and x.shape[3] >= 32
    if is_large and jax.default_backend() == "cpu":
        return _large_conv(x, kernel, stride, padding)
    return _plain_conv(x, kernel, stride, padding)


def _plain_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# Not a custom_vjp, which would have no forward mode and no second derivatives through it.
_large_conv = jax.custom_jvp(_plain_conv, nondiff_argnums=(2, 3))


@_large_conv.defjvp
def _large_conv_jvp(
    stride: int, padding: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, d_kernel) = primals, tangents
    y = _large_conv(x, kernel, stride, padding)
    along_x = _by_phases(dx, kernel, stride, padding)
    return y, along_x + _by_strips(x, d_kernel, stride, padding, y.shape)


def _by_phases(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """A convolution, as a sum of convolutions of stride 1: one for each place of the stride's grid.

    Transposed, it gives the gradient of the map: for stride 2 in a third of the time that XLA's CPU
    code takes for the same as one convolution, which reads mostly zeros.
    """
    if stride == 1:
        return _plain_conv(x, kernel, stride, padding)
    rows, columns = ((n + 2 * padding - len(kernel)) // stride + 1 for n in x.shape[1:3])
    # So that each phase has the rows and columns that the largest kernel reads.
    more = (padding, padding + stride)
    x = jnp.pad(x, ((0, 0), more, more, (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i, j in itertools.product(range(min(stride, len(kernel))), repeat=2):
        part = kernel[i::stride, j::stride]
        height, width = rows + part.shape[0] - 1, columns + part.shape[1] - 1
        phase = x[:, i::stride, j::stride][:, :height, :width]
        total = total + _plain_conv(phase, part, 1, 0)
    return total


def _by_strips(x: Array, kernel: Array, stride: int, padding: int, shape: tuple[int, ...]) -> Array:
    """A convolution, as a sum over the kernel's cells of matrix products, strip of rows by strip.

    Transposed, it gives the kernel's gradient: for 2 maps of 120 x 160 x 256 in a fifth of the time
    that XLA's CPU code takes for the same as one convolution. The products and barriers are such
    that the gradient's are [outputs, cells] x [cells, inputs], the form that XLA is fastest at.
    """
    size, (batch, height, width, _) = len(kernel), shape
    n_rows = -(-height // min(height, -(-x.size // STRIP_VALUES)))  # Of a strip.
    n_strips = -(-height // n_rows)
    below = (n_strips * n_rows - 1) * stride + size - x.shape[1] - padding
    x = jnp.pad(x, ((0, 0), (padding, max(0, below)), (padding, padding), (0, 0)))
    dtype, exact = kernel.dtype, jnp.promote_types(x.dtype, jnp.float32)

    @jax.checkpoint  # Shifted copies of the whole map would be kept otherwise.
    def one(x: Array, kernel: Array, strip: Array) -> Array:
        read = (batch, (n_rows - 1) * stride + size, *x.shape[2:])
        rows = jax.lax.dynamic_slice(x, (0, strip * n_rows * stride, 0, 0), read).astype(exact)
        total = jnp.zeros((), exact)
        for i, j in itertools.product(range(size), repeat=2):
            limits = (batch, i + (n_rows - 1) * stride + 1, j + (width - 1) * stride + 1, read[3])
            window = jax.lax.slice(rows, (0, i, j, 0), limits, (1, stride, stride, 1))
            window = jax.lax.optimization_barrier(window.reshape(-1, read[3]))
            total = total + kernel[i, j] @ window.T
        total = jax.lax.optimization_barrier(total)
        return total.T.reshape(batch, n_rows, width, -1)

    kernel = kernel.astype(exact).swapaxes(2, 3)

    def step(_: None, strip: Array) -> tuple[None, Array]:
        return None, one(x, kernel, strip)

    _, strips = jax.lax.scan(step, None, jnp.arange(n_strips))
    rows = jnp.moveaxis(strips, 0, 1).reshape(batch, n_strips * n_rows, width, -1)
    return rows[:, :height].astype(dtype)


def _grouped_conv(x: Array, kernel: Array, *, stride: int, padding: int, groups: int) -> Array:
    """A sum over the kernel's cells of products with shifted slices.

    XLA's grouped convolution takes 60 times longer on CPU where each channel is a group, and its
    gradient 40 times longer where 32 are.
    """
    size, batch = kernel.shape[0], x.shape[0]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    exact = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((), exact)
    for i, j in itertools.product(range(size), repeat=2):
        limits = (batch, i + rows, j + columns, x.shape[3])
        window = jax.lax.slice(x, (0, i, j, 0), limits, (1, stride, stride, 1))
        if kernel.shape[2:] == (1, groups):
            total = total + window.astype(exact) * kernel[i, j].reshape(1, 1, 1, -1)
        else:
            parts = window.reshape(*window.shape[:3], groups, -1)
            weight = kernel[i, j].reshape(kernel.shape[2], groups, -1)
            total = total + jnp.einsum(
                "bhwgc,cgd->bhwgd", parts, weight, preferred_element_type=exact
            )
    return total.reshape(*total.shape[:3], -1).astype(x.dtype)


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
    activation: Callable[[Array], Array] | None = nn.relu
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
