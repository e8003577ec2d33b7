"""The region proposal network: at every cell, is one of these anchors an object, and where exactly?

b h w c  images in a batch, height, width, channels.    a  anchors of a cell.
m        anchors of an image: all levels end to end, by row, column, then anchor of the cell.
n        objects, or proposals, of an image.
logits   of being an object.    deltas  from anchors to boxes, see `geometry.coders`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdet.features.activations import relu
from jaxdet.features.conv import FirstOfSequence
from jaxdet.geometry import anchors as anchor_ops
from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import coders, nms
from jaxdet.losses import boxes as box_losses
from jaxdet.losses import classification
from jaxdet.structures import Proposals
from jaxdet.targets import matching, sampling

small_normal = nn.initializers.normal(0.01)


class RPNOutputs(NamedTuple):
    """What the network says of every anchor."""

    logits: Float[Array, "b m"]
    deltas: Float[Array, "b m 4"]
    anchors: Float[Array, "m 4"]  # The same for all images.
    level_sizes: tuple[int, ...]  # Anchors of each level; their sum is m.


class ProposalOptions(NamedTuple):
    """How many of the anchors become proposals."""

    pre_nms: int = 1000  # The best of each level that go on to suppression.
    post_nms: int = 1000  # The best of all levels that leave it.
    iou_threshold: float = 0.7
    min_side: float = 1e-3  # Smaller boxes are dropped, pixels.
    score_threshold: float = 0.0  # Less likely ones are dropped, 0 to 1.


class RPNTargets(NamedTuple):
    """Which anchors are trained, and how."""

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    sample_size: int = 256  # Anchors of an image in the loss.
    positive_fraction: float = 0.5
    beta: float = 1 / 9  # Of the smooth L1 loss.


class RPNHead(nn.Module):
    """A small network that slides over every level with the same weights."""

    n_anchors: int
    n_convs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: tuple[Float[Array, "b _ _ c"], ...]
    ) -> list[tuple[Float[Array, "b _"], Float[Array, "b _ 4"]]]:
        """Returns (logits, deltas) of each level."""
        width = pyramid[0].shape[-1]
        trunk = _Convs(width, self.n_convs, self.dtype, name="conv")
        # As one layer: their gradients of the trunk's maps would be kept beside each other.
        layers = [
            _Layer(n, name=name)(width)
            for name, n in (("cls_logits", self.n_anchors), ("bbox_pred", 4 * self.n_anchors))
        ]
        kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*layers, strict=True))
        levels = []
        for x in pyramid:
            # Flat before the last ReLU, or XLA computes that for its gradient once more.
            rows = trunk(x).reshape(-1, width)
            rows = relu(rows) if self.n_convs else rows
            both = rows.astype(jnp.float32) @ kernel + bias.reshape(1, -1)
            logits, deltas = jnp.split(
                both.reshape(len(x), -1, len(bias)), [self.n_anchors], axis=-1
            )
            levels.append((logits.reshape(len(x), -1), deltas.reshape(len(x), -1, 4)))
        return levels


class _Layer(nn.Module):
    """The parameters of a 1x1 convolution."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", small_normal, (1, 1, width, self.features))
        return kernel[0, 0], self.param("bias", nn.initializers.zeros, (self.features,))


class _Convs(nn.Module):
    """3x3 convolutions, ReLU between them; torchvision has each in a sequence: `conv.I.0`."""

    features: int
    n_convs: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.n_convs):
            conv = FirstOfSequence(self.features, 3, small_normal, self.dtype, name=str(i))
            x = conv(relu(x) if i else x)
        return x


class RPN(nn.Module):
    """Head and anchors of a region proposal network.

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.1; on pyramids FPN (Lin et al.
      2017, arXiv:1612.03144v2), section 4.1.

    Departures:
      One logit an anchor instead of two, as all successors do; anchors that cross the border of the
      image are trained too.
    """

    anchor_sizes: tuple[tuple[float, ...], ...]
    """Square roots of the anchors' areas, pixels, for each level of the pyramid."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """height / width"""
    n_convs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: tuple[Float[Array, "b _ _ c"], ...], canvas: tuple[int, int]
    ) -> RPNOutputs:
        """Returns logits and deltas of all anchors of a canvas (height, width)."""
        per_cell = {len(sizes) * len(self.aspect_ratios) for sizes in self.anchor_sizes}
        if len(per_cell) != 1:
            raise ValueError(
                f"All levels must have equally many anchor sizes. Got {self.anchor_sizes}."
            )
        head = RPNHead(per_cell.pop(), self.n_convs, self.dtype, name="head")
        levels = head(pyramid)
        grids = [(x.shape[1], x.shape[2]) for x in pyramid]
        anchors = anchor_ops.pyramid_anchors(grids, canvas, self.anchor_sizes, self.aspect_ratios)
        return RPNOutputs(
            jnp.concatenate([logits for logits, _ in levels], axis=1).astype(jnp.float32),
            jnp.concatenate([deltas for _, deltas in levels], axis=1).astype(jnp.float32),
            jnp.concatenate(anchors),
            tuple(len(a) for a in anchors),
        )


@jax.named_scope("proposals")
def propose(
    logits: Float[Array, " m"],
    deltas: Float[Array, "m 4"],
    anchors: Float[Array, "m 4"],
    size: Int[Array, "2"],
    *,
    level_sizes: Sequence[int],
    options: ProposalOptions,
) -> tuple[Float[Array, "n 4"], Float[Array, " n"], Bool[Array, " n"]]:
    """Turns one image's outputs into its best boxes.

    The best anchors of each level are moved by their deltas and cut at the picture's border;
    suppression works within levels, and the best of all levels stay.

    Args:
      logits: Of being an object.
      deltas: From anchors to boxes.
      anchors: xyxy pixels.
      size: (height, width) of the picture, pixels.
      level_sizes: Anchors of each level, in order.
      options: How many, and how far apart.

    Returns:
      Boxes (xyxy pixels), logits and which rows are valid, best first; n is
      `min(options.post_nms, candidates)`.

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.3, "non-maximum suppression".

    Departures:
      Boxes rank by probability, in float32, and equal ones by level, then logit, as in torchvision.
    """
    rows, levels, start = [], [], 0
    for level, count in enumerate(level_sizes):
        kept = min(options.pre_nms, count)
        rows.append(start + jax.lax.top_k(logits[start : start + count], kept)[1])
        levels.append(jnp.full(kept, level, jnp.int32))
        start += count
    row, level = jnp.concatenate(rows), jnp.concatenate(levels)
    logits = logits[row]
    boxes = box_ops.clip(coders.decode_boxes(deltas[row], anchors[row]), size)
    valid = jnp.all(boxes[:, 2:] - boxes[:, :2] >= options.min_side, axis=1)
    # Where probabilities are all but 1, float32 makes many of them equal; the peer ranks by them.
    scores = jax.lax.stop_gradient(jax.nn.sigmoid(logits))
    valid &= scores >= options.score_threshold
    kept = nms.batched_nms(
        jax.lax.stop_gradient(boxes),
        scores,
        level,
        valid,
        iou_threshold=options.iou_threshold,
        max_outputs=min(options.post_nms, len(row)),
    )
    zeroed = jnp.where(kept.valid[:, None], boxes[kept.indices], 0)
    return zeroed, jnp.where(kept.valid, logits[kept.indices], 0), kept.valid


def propose_batch(
    outputs: RPNOutputs, sizes: Int[Array, "b 2"], *, options: ProposalOptions
) -> Proposals:
    """Returns `propose` of every image."""

    def one(logits: Array, deltas: Array, size: Array) -> Any:
        return propose(
            logits, deltas, outputs.anchors, size, level_sizes=outputs.level_sizes, options=options
        )

    return Proposals(*jax.vmap(one)(outputs.logits, outputs.deltas, sizes))


@jax.named_scope("rpn_loss")
def rpn_loss(
    key: PRNGKeyArray,
    logits: Float[Array, " m"],
    deltas: Float[Array, "m 4"],
    anchors: Float[Array, "m 4"],
    boxes: Float[Array, "n 4"],
    objects: Bool[Array, " n"],
    regions: Bool[Array, " n"],
    *,
    options: RPNTargets,
) -> dict[str, classification.Term]:
    """Returns one image's losses as (sum, count), the count that of sampled anchors.

    Args:
      key: Chooses the sample.
      logits: Of being an object.
      deltas: From anchors to boxes.
      anchors: xyxy pixels.
      boxes: Ground truth, xyxy pixels.
      objects: Rows of `boxes` to be found.
      regions: Rows that are crowds or difficult: anchors in and around them are no errors.
      options: Thresholds and sizes.

    Source:
      Faster R-CNN (Ren et al. 2015, arXiv:1506.01497v3), section 3.1.2, eq. 1.

    Departures:
      Both terms are divided by the number of sampled anchors, as torchvision does; the paper
      divides the regression by the number of positions and weights it by 10, about the same.
    """
    matches = matching.match_boxes(
        boxes,
        objects,
        anchors,
        positive_iou=options.positive_iou,
        negative_iou=options.negative_iou,
        keep_best=True,
    )
    matches = matching.ignore_regions(
        matches, anchors, boxes, regions, iou=options.negative_iou, keep_best=True
    )
    sample = sampling.sample_balanced(
        key,
        matches.positive,
        matches.negative,
        size=options.sample_size,
        positive_fraction=options.positive_fraction,
    )
    rows = sample.index
    objectness = classification.sigmoid_cross_entropy(logits[rows], sample.positive)
    target = coders.encode_boxes(boxes[matches.index[rows]], anchors[rows])
    distance = box_losses.smooth_l1(deltas[rows], target, beta=options.beta)
    objectness_sum, count = classification.weighted_sum(objectness, sample.valid)
    distance_sum, _ = classification.weighted_sum(distance, sample.positive)
    return {"rpn_objectness": (objectness_sum, count), "rpn_box": (distance_sum, count)}
