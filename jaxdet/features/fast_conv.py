"""Convolutions in forms that are fast on CPU, and have fast gradients.

b h w c  images in a batch, height, width, channels.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

STRIP_VALUES = 1 << 18  # Of the maps that are read in one piece where that is faster on CPU.


# Traced once a shape: deep networks have few. `STRIP_VALUES` is read when that is done.
@functools.partial(jax.jit, static_argnames=("stride", "padding"))
def conv(x: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    """A convolution; on CPU a large one is computed by `_winograd`, or its gradient by strips."""
    is_large = x.size >= 2 * STRIP_VALUES and x.shape[3] >= 32
    if not is_large or jax.default_backend() != "cpu":
        return _plain_conv(x, kernel, (stride, stride), (padding, padding))
    # Products must take much longer than sums, and kernels be small beside maps.
    n_cells, channels = x.size // x.shape[3], kernel.shape[2:]
    has_to_gain = channels[0] >= 128 and n_cells >= 16 * channels[1]
    if has_to_gain and kernel.shape[:2] == (3, 3) and stride == 1 and x.dtype == jnp.float32:
        return _large_3x3(x, kernel, padding)
    return _large_conv(x, kernel, stride, padding)


def _plain_conv(
    x: Array, kernel: Array, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(n, n) for n in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# Not a custom_vjp, which would have no forward mode and no second derivatives through it.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _large_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return _plain_conv(x, kernel, (stride, stride), (padding, padding))


@_large_conv.defjvp
def _large_conv_jvp(
    stride: int, padding: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, d_kernel) = primals, tangents
    y = _large_conv(x, kernel, stride, padding)
    along_x = _by_phases(dx, kernel, stride, padding)
    return y, along_x + _by_strips(x, d_kernel, (stride, stride), (padding, padding))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _large_3x3(x: Array, kernel: Array, padding: int) -> Array:
    return _winograd(x, kernel, padding, _plain_conv)


@_large_3x3.defjvp
def _large_3x3_jvp(
    padding: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, d_kernel) = primals, tangents
    # Sums of rows would be kept otherwise, half as much again as the map and the kernel.
    along = jax.checkpoint(_winograd, static_argnums=(2, 3))
    along_x = along(dx, kernel, padding, _plain_conv)
    along_kernel = along(x, d_kernel, padding, _by_strips)
    return _large_3x3(x, kernel, padding), along_x + along_kernel


# Winograd's F(4, 3), at the points 0, 1, -1, 2, -2 and infinity: four sums of three products each
# from six products, AFTER ((WEIGHTS k) * (BEFORE x)) of three weights k and six inputs x.
BEFORE = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WEIGHTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
AFTER = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def _winograd(x: Array, kernel: Array, padding: int, conv: Callable[..., Array]) -> Array:
    """A 3 x 3 convolution with half of the multiplications: 1 x 3 convolutions of sums of rows.

    Lavin and Gray 2016 (arXiv:1509.09308), section 4.1, along the rows only, where both sums are of
    whole rows. Differs from the sum of nine products by about 5e-6 of the largest value.

    Args:
      x: [b, h, w, c].
      kernel: [3, 3, c, c2].
      padding: Rows and columns of zeros on every side.
      conv: Of sums of rows [b, n, w, c] with one row of a kernel, given its padding.
    """
    rows = x.shape[1] + 2 * padding - 2
    n = -(-rows // 4)
    x = jnp.pad(x, ((0, 0), (padding, 4 * n + 4 - x.shape[1] - padding), (0, 0), (0, 0)))
    # Slices with a stride would be transposed to six maps of full size.
    fours = jax.lax.split(x.reshape(len(x), n + 1, 4, *x.shape[2:]), (1,) * 4, axis=2)
    fours = [each.squeeze(2) for each in fours]
    inputs = [*(each[:, :-1] for each in fours), *(each[:, 1:] for each in fours[:2])]
    sums = [_weighted(weights, inputs) for weights in BEFORE]
    kernels = jnp.tensordot(jnp.asarray(WEIGHTS, kernel.dtype), kernel, 1)
    kernels = jax.lax.split(kernels, (1,) * len(WEIGHTS))
    products = [conv(*each, padding=(0, padding)) for each in zip(sums, kernels, strict=True)]
    y = jnp.stack([_weighted(after, products) for after in AFTER], axis=2)
    return y.reshape(y.shape[0], 4 * n, *y.shape[3:])[:, :rows]


def _weighted(weights: Sequence[float | int], values: Sequence[Array]) -> Array:
    # Of `lax`, which is traced much faster than what `*` and `+` stand for.
    terms = [
        x if w == 1 else jax.lax.mul(x, jnp.asarray(w, x.dtype))
        for w, x in zip(weights, values, strict=True)
        if w
    ]
    return functools.reduce(jax.lax.add, terms)


def _by_phases(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """A convolution, as a sum of convolutions of stride 1: one for each place of the stride's grid.

    Transposed, it gives the gradient of the map: for stride 2 in a third of the time that XLA's CPU
    code takes for the same as one convolution, which reads mostly zeros.
    """
    if stride == 1:
        return _plain_conv(x, kernel, padding=(padding, padding))
    rows, columns = ((n + 2 * padding - len(kernel)) // stride + 1 for n in x.shape[1:3])
    # So that each phase has the rows and columns that the largest kernel reads.
    more = (padding, padding + stride)
    x = jnp.pad(x, ((0, 0), more, more, (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i, j in itertools.product(range(min(stride, len(kernel))), repeat=2):
        part = kernel[i::stride, j::stride]
        height, width = rows + part.shape[0] - 1, columns + part.shape[1] - 1
        phase = x[:, i::stride, j::stride][:, :height, :width]
        total = total + _plain_conv(phase, part)
    return total


# Traced once for the six of `_winograd`, which are of one shape.
@functools.partial(jax.jit, static_argnames=("stride", "padding"))
def _by_strips(
    x: Array, kernel: Array, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> Array:
    """A convolution, as a sum over the kernel's cells of matrix products, strip of rows by strip.

    Transposed, it gives the kernel's gradient: for 2 maps of 120 x 160 x 256 in a fifth of the time
    that XLA's CPU code takes for the same as one convolution. The products and barriers are such
    that the gradient's are [outputs, cells] x [cells, inputs], the form that XLA is fastest at.
    """
    batch, size = len(x), kernel.shape[:2]
    height, width = (
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[1:3], padding, size, stride, strict=True)
    )
    n_rows = -(-height // min(height, -(-x.size // STRIP_VALUES)))  # Of a strip.
    n_strips = -(-height // n_rows)
    below = (n_strips * n_rows - 1) * stride[0] + size[0] - x.shape[1] - padding[0]
    x = jnp.pad(x, ((0, 0), (padding[0], max(0, below)), (padding[1], padding[1]), (0, 0)))
    dtype, exact = kernel.dtype, jnp.promote_types(x.dtype, jnp.float32)

    @jax.checkpoint  # Shifted copies of the whole map would be kept otherwise.
    def one(x: Array, kernel: Array, strip: Array) -> Array:
        read = (batch, (n_rows - 1) * stride[0] + size[0], *x.shape[2:])
        rows = jax.lax.dynamic_slice(x, (0, strip * n_rows * stride[0], 0, 0), read).astype(exact)
        products = []
        for (i, j), weights in zip(itertools.product(*map(range, size)), kernel, strict=True):
            ends = i + (n_rows - 1) * stride[0] + 1, j + (width - 1) * stride[1] + 1
            window = jax.lax.slice(rows, (0, i, j, 0), (batch, *ends, read[3]), (1, *stride, 1))
            window = jax.lax.reshape(window, (batch * n_rows * width, read[3]))
            window = jax.lax.optimization_barrier(window)
            products.append(jax.lax.dot(weights, window.T))
        total = jax.lax.optimization_barrier(functools.reduce(jax.lax.add, products))
        return total.T.reshape(batch, n_rows, width, -1)

    kernel = kernel.astype(exact).swapaxes(2, 3).reshape(-1, kernel.shape[3], kernel.shape[2])

    def step(_: None, strip: Array) -> tuple[None, Array]:
        return None, one(x, kernel, strip)

    _, strips = jax.lax.scan(step, None, jnp.arange(n_strips))
    rows = jnp.moveaxis(strips, 0, 1).reshape(batch, n_strips * n_rows, width, -1)
    return rows[:, :height].astype(dtype)


def grouped_conv(x: Array, kernel: Array, *, stride: int, padding: int, groups: int) -> Array:
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
