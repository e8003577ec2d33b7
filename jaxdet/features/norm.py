"""Normalized pictures; and normalization layers, `Norm(name=...)(x, mask, train=...)`.

b h w c  images in a batch, height, width, channels.
mask     True inside the pictures, False on the canvas around them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.structures import Images

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def valid_mask(
    sizes: Int[Array, "b 2"], shape: tuple[int, int], *, stride: int
) -> Bool[Array, "b h w 1"]:
    """Returns which cells of a feature map see the picture rather than its padding.

    Args:
      sizes: (height, width) of each picture, pixels of the canvas.
      shape: (h, w) of the feature map.
      stride: Pixels of the canvas per cell.
    """
    rows, columns = (jnp.arange(n, dtype=jnp.int32) * stride for n in shape)
    inside_y = rows[None, :] < sizes[:, :1]
    inside_x = columns[None, :] < sizes[:, 1:]
    return inside_y[:, :, None, None] & inside_x[:, None, :, None]


def whole(x: Float[Array, "b h w c"]) -> Int[Array, "b 2"]:
    """Returns the sizes of pictures that fill their canvas."""
    return jnp.broadcast_to(jnp.array(x.shape[1:3], jnp.int32), (x.shape[0], 2))


def normalized(
    images: Images,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Float[Array, "b h w 3"]:
    """Returns (pixels - mean) / std, and 0 outside of the pictures.

    Args:
      images: Pictures on a canvas.
      mean: Of the training pictures, for each colour, 0 to 255.
      std: Their standard deviation.
    """
    center, spread = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (mean, std))
    pixels = (images.pixels.astype(jnp.float32) - center) / spread
    canvas = (images.pixels.shape[1], images.pixels.shape[2])
    return jnp.where(valid_mask(images.sizes, canvas, stride=1), pixels, 0)


class BatchNorm(nn.BatchNorm):
    """Batch normalization, synchronized over the devices of `axis_name`.

    Training normalizes by the statistics of the *global* batch, padding included as torchvision
    does, and moves the running ones; evaluation uses the running ones. The running variance is the
    unbiased one, n / (n - 1) times that of the n cells, as in torch.

    Source:
      Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithms 1 and 2.
    """

    momentum: float = 0.9

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Returns `x` normalized per channel, scaled and shifted."""
        del mask
        before = self.get_variable("batch_stats", "var") if train else None
        y = super().__call__(x, use_running_average=not train)
        if before is not None and not self.is_initializing():
            # Linen moved it by the biased variance.
            devices = 1 if self.axis_name is None else jax.lax.psum(1, self.axis_name)
            n = devices * (x.size // x.shape[-1])
            kept = self.momentum * before
            moved = self.get_variable("batch_stats", "var") - kept
            self.put_variable("batch_stats", "var", kept + moved * (n / max(n - 1, 1)))
        return y


class FrozenBatchNorm(nn.Module):
    """Batch normalization by fixed statistics; nothing in it is trained.

    Its four arrays live in the collection `frozen`, where no optimizer finds them. A scale that is
    never trained must not start at zero, so `scale_init` is not heeded: a fresh layer is the
    identity.
    """

    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Returns `x` times one number per channel plus another."""
        del mask, train
        shape = (x.shape[-1],)
        scale = self.variable("frozen", "scale", jnp.ones, shape).value
        bias = self.variable("frozen", "bias", jnp.zeros, shape).value
        mean = self.variable("frozen", "mean", jnp.zeros, shape).value
        variance = self.variable("frozen", "var", jnp.ones, shape).value
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = bias - mean * factor
        factor, shift = (v.reshape(1, 1, 1, -1).astype(self.dtype) for v in (factor, shift))
        return x * factor + shift


class GroupNorm(nn.Module):
    """Group normalization over the picture only, so that padding changes nothing in it.

    Source:
      Wu & He 2018 (arXiv:1803.08494), eq. 1-4.

    Departures:
      Means and variances leave out cells of padding; groups hold a fixed number of channels
      (section 4.1's second parametrization), so that narrow layers work too.
    """

    channels_per_group: int = 16
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Returns `x` normalized per image and group, scaled and shifted per channel."""
        del train
        channels = x.shape[-1]
        if channels % self.channels_per_group:
            raise ValueError(
                f"{channels} channels do not divide into groups of {self.channels_per_group}."
            )
        grouped = x.astype(jnp.float32).reshape(*x.shape[:3], -1, self.channels_per_group)
        weight = mask[..., None].astype(jnp.float32)
        axes = (1, 2, 4)
        # An image of padding alone (the end of an evaluation) has no cell to average.
        count = jnp.maximum(weight.sum(axes, keepdims=True) * self.channels_per_group, 1)
        mean = (grouped * weight).sum(axes, keepdims=True) / count
        variance = ((grouped - mean) ** 2 * weight).sum(axes, keepdims=True) / count
        normal = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        scale = self.param("scale", self.scale_init, (channels,)).reshape(1, 1, 1, -1)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).reshape(1, 1, 1, -1)
        return (normal * scale + bias).astype(self.dtype)
