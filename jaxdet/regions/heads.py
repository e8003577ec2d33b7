"""Heads that read the features of one box: what is it, and where exactly?

r        boxes of all images.    p q c  rows, columns and channels of pooled features.
k        classes, background (0) included.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdet.features.activations import relu
from jaxdet.features.conv import Conv
from jaxdet.features.fpn import lecun_uniform
from jaxdet.regions import levels, roi_align


class BoxOutputs(NamedTuple):
    """What the head says of each box."""

    logits: Float[Array, "*b k"]
    deltas: Float[Array, "*b j 4"]  # j is k, or 1 where the regression is class-agnostic.


class TwoMLPHead(nn.Module):
    """Two fully connected layers.

    Source:
      FPN (Lin et al. 2017, arXiv:1612.03144v2), section 4.2.
    """

    features: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "r p q c"], valid: Bool[Array, " r"], *, train: bool
    ) -> Float[Array, "r d"]:
        """Returns one vector a box."""
        del valid, train
        x = jax.lax.collapse(x, 1)
        for name in ("fc6", "fc7"):
            dense = nn.Dense(self.features, kernel_init=lecun_uniform, dtype=self.dtype, name=name)
            x = relu(dense(x))
        return x


class ConvHead(nn.Module):
    """3x3 convolutions with batch norm, then one fully connected layer.

    Source:
      Group Normalization (Wu & He 2018, arXiv:1803.08494), section 4.2, "4conv1fc"; with batch norm
      in Li et al. 2021 (arXiv:2111.11429), section 2, and torchvision's `_v2` models.
    """

    n_convs: int = 4
    features: int = 256
    """Channels of the convolutions."""
    dense_features: int = 1024
    axis_name: str | None = None
    """The mapped axis over which batch statistics are synchronized."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "r p q c"], valid: Bool[Array, " r"], *, train: bool
    ) -> Float[Array, "r d"]:
        """Returns one vector a box; statistics of training are those of the valid boxes."""
        for i in range(self.n_convs):
            block = _HeadConv(self.features, self.axis_name, self.dtype, name=str(i))
            x = block(x, valid, train=train)
        # Torchvision counts a flattening layer too.
        name = str(self.n_convs + 1)
        dense = nn.Dense(
            self.dense_features, kernel_init=lecun_uniform, dtype=self.dtype, name=name
        )
        return relu(dense(jax.lax.collapse(x, 1)))


class _HeadConv(nn.Module):
    """A convolution without bias, batch norm and ReLU; torchvision calls the first two 0 and 1."""

    features: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, valid: Array, *, train: bool) -> Array:
        x = Conv(self.features, use_bias=False, dtype=self.dtype, name="0")(x)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            use_fast_variance=False,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name="1",
        )
        return relu(norm(x, mask=valid.reshape(-1, 1, 1, 1)))


class BoxPredictor(nn.Module):
    """One layer each for classes and boxes."""

    num_classes: int
    """Of objects; background is one more."""
    class_agnostic: bool = False
    """Whether all classes share their four numbers."""

    @nn.compact
    def __call__(self, x: Float[Array, "r d"]) -> BoxOutputs:
        """Returns logits and deltas, in float32."""
        n_logits = self.num_classes + 1
        n_boxes = 1 if self.class_agnostic else n_logits
        normal = nn.initializers.normal
        logits = nn.Dense(n_logits, kernel_init=normal(0.01), name="cls_score")(x)
        deltas = nn.Dense(4 * n_boxes, kernel_init=normal(0.001), name="bbox_pred")(x)
        deltas = deltas.reshape(-1, n_boxes, 4).astype(jnp.float32)
        return BoxOutputs(logits.astype(jnp.float32), deltas)


class RoIHeads(nn.Module):
    """Pools each box from the level of its size and asks the head.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), section 2; on pyramids FPN, section 4.2.
    """

    box_head: nn.Module
    box_predictor: nn.Module
    n_levels: int = 4
    """Levels of the pyramid that are read, from the finest on."""
    canonical_size: float = 224.0
    """A box of this side is read from `canonical_level`, pixels."""
    canonical_level: int = 4
    """log2 of a stride."""
    output_size: int = 7
    sampling_ratio: int = 2
    aligned: bool = False

    def __call__(
        self,
        pyramid: tuple[Float[Array, "b _ _ c"], ...],
        boxes: Float[Array, "b n 4"],
        canvas: tuple[int, int],
        *,
        valid: Bool[Array, "b n"] | None = None,
        train: bool = False,
    ) -> BoxOutputs:
        """Returns what the head says of boxes.

        Args:
          pyramid: Finest level first.
          boxes: xyxy, pixels of the canvas.
          canvas: (height, width), pixels.
          valid: Boxes that batch statistics are of; all if None.
          train: Whether norms use (and move) the statistics of the batch.

        Returns:
          Logits [b, n, k] and deltas [b, n, j, 4].
        """
        pyramid = pyramid[: self.n_levels]
        strides = [_stride(x.shape, canvas) for x in pyramid]

        def pool(maps: tuple[Array, ...], boxes: Array) -> Array:
            assigned = levels.assign_levels(
                boxes,
                n_levels=len(maps),
                canonical_size=self.canonical_size,
                canonical_level=self.canonical_level,
                min_level=strides[0].bit_length() - 1,
            )
            return roi_align.pyramid_roi_align(
                maps,
                boxes,
                assigned,
                spatial_scales=tuple(1 / stride for stride in strides),
                output_size=self.output_size,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            )

        pooled = jax.vmap(pool)(pyramid, boxes)
        batch, n = boxes.shape[:2]
        real = jnp.ones(batch * n, bool) if valid is None else valid.reshape(-1)
        vectors = self.box_head(pooled.reshape(batch * n, *pooled.shape[2:]), real, train=train)
        flat = self.box_predictor(vectors)
        return BoxOutputs(*(x.reshape(batch, n, *x.shape[1:]) for x in flat))


def _stride(shape: tuple[int, ...], canvas: tuple[int, int]) -> int:
    """Pixels a cell, a power of two; a canvas that does not divide would shift all boxes."""
    stride = canvas[0] // shape[1]
    if (shape[1] * stride, shape[2] * stride) != canvas or stride & (stride - 1):
        raise ValueError(f"Strides must divide the canvas. Got {canvas} for a map of {shape[1:3]}.")
    return stride
