"""Fully connected layers: on one window of a feature map, or on every window of a larger one.

A dense layer that reads a window of h x w cells is a convolution of that kernel size without
padding, and one that reads its output a convolution of 1 x 1. `to_conv` and `slide` are that: what
a classifier says of every window of a picture, without running the layers below once for each.

b h w c  maps in a batch, height, width, channels.    n d  windows, numbers of a window.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.features.activations import relu

Layer = Mapping[str, Array]
"""The "kernel" and the "bias" of a dense layer or a convolution."""


class DenseStack(nn.Module):
    """Fully connected layers with ReLU and dropout between them."""

    widths: tuple[int, ...]
    """Outputs of each layer."""
    dropout: float = 0.0
    """Of what the hidden layers put out."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n d"], *, train: bool, keys: Any = None
    ) -> Float[Array, "n k"]:
        """Returns what the last layer says, float32.

        Args:
          x: Flattened windows, see `conv.flatten`.
          train: Whether there is dropout.
          keys: One a window, for dropout: what is dropped does not depend on the others.
        """
        if train and self.dropout and keys is None:
            raise ValueError(f"keys are needed for dropout. Got None with {self.dropout}")
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=str(i))(x)
            if i + 1 < len(self.widths):
                x = relu(x)
                if train and self.dropout:
                    x = _drop(keys, x, i, 1 - self.dropout)
        return x.astype(jnp.float32)


def _drop(keys: Any, x: Array, layer: int, kept: float) -> Array:
    def one(key: Any, row: Array) -> Array:
        mask = jax.random.bernoulli(jax.random.fold_in(key, layer), kept, row.shape)
        return jnp.where(mask, row / kept, 0)

    return jax.vmap(one)(keys, x)


def layers_of(stack: Mapping[str, Layer]) -> list[Layer]:
    """Returns the layers of a `DenseStack`'s parameters in order."""
    return [stack[str(i)] for i in range(len(stack))]


def to_conv(layers: Sequence[Layer], window: tuple[int, int]) -> list[dict[str, Array]]:
    """Returns the convolutions that dense layers are, when they slide over a map.

    Args:
      layers: In order; the first reads a window flattened channel by channel, as `conv.flatten`
        and torch do it: kernels are [c * h * w, k], then [k, k2], ...
      window: (h, w) of the window, cells.

    Returns:
      Kernels [h, w, c, k], then [1, 1, k, k2], ..., and biases as they were.

    Source:
      OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 3.5.
    """
    height, width = window
    convs = []
    for layer in layers:
        inputs, outputs = layer["kernel"].shape
        if inputs % (height * width):
            raise ValueError(f"window must divide the layer's {inputs} inputs. Got {window}")
        kernel = layer["kernel"].reshape(-1, height, width, outputs)
        convs.append({"kernel": jnp.moveaxis(kernel, 0, 2), "bias": layer["bias"]})
        height = width = 1
    return convs


def slide(
    maps: Float[Array, "b h w c"],
    layers: Sequence[Layer],
    window: tuple[int, int],
    *,
    step: int = 1,
) -> Float[Array, "b h2 w2 k"]:
    """Returns what dense layers, ReLU between them, say of every window of a map.

    Args:
      maps: Features of whole pictures.
      layers: As in `to_conv`.
      window: (h, w) of the window, cells.
      step: From one cell of a window to the next; windows begin at every cell all the same.

    Returns:
      One vector a window, float32; h2 is h - step * (window's h - 1). Windows do not hang over.
    """
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        rhs_dilation=(step, step),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for i, conv in enumerate(to_conv(layers, window)):
        maps = relu(maps) if i else maps
        maps = convolve(maps, conv["kernel"].astype(maps.dtype))
        maps = maps + conv["bias"].reshape(1, 1, 1, -1).astype(maps.dtype)
    return maps.astype(jnp.float32)
