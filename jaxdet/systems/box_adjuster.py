"""Iterative adjustment: from boxes to better boxes, until they settle.

b n m  images, boxes of an image, candidates of an object.

    images -> pyramid;   boxes -> pooled features -> (dx, dy, dw, dh) -> boxes, and again

The regressor knows no classes: it learns from objects' boxes that were shifted and stretched.

Source:
  Gidaris & Komodakis 2015 (arXiv:1505.01749v3), section 5, regress and score boxes in turn;
  Cascade R-CNN (Cai & Vasconcelos 2018, arXiv:1712.00726v1), section 3.1, applies one regressor
  several times.

Departures:
  There are no scores and no classes. A box that would hardly move stays where it is, so that what
  has settled is a fixed point.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdet.features import fpn, networks, norm
from jaxdet.features.networks import Network
from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import coders
from jaxdet.geometry import iou as iou_ops
from jaxdet.losses import boxes as box_losses
from jaxdet.losses import classification
from jaxdet.losses.classification import Term
from jaxdet.regions.heads import BoxOutputs, RoIHeads, TwoMLPHead
from jaxdet.regions.roi_loss import BOX_WEIGHTS
from jaxdet.structures import Batch, Images
from jaxdet.training import steps
from jaxdet.training.steps import Aux


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A box adjuster, in numbers that JSON can hold."""

    network: Network = Network(width=24, n_stages=2)
    """Its last map is read."""
    features: int = 256
    """Width of the head's layers."""


class LossOptions(NamedTuple):
    """What is learnt from."""

    n_candidates: int = 8  # Of each object.
    shift: float = 0.3  # Largest shift of a candidate, in sides of the object; all smaller ones.
    stretch: float = 0.4  # Largest change of a side's logarithm.
    beta: float = 1 / 9  # Of the smooth L1 loss.


class Settled(NamedTuple):
    """Where boxes came to rest."""

    boxes: Float[Array, "b n 4"]
    settled: Bool[Array, "b n"]  # Else they were still moving.
    n_steps: Int[Array, ""]  # Until all had settled, or as many as were allowed.


class Deltas(nn.Module):
    """One layer for boxes, none for classes."""

    @nn.compact
    def __call__(self, x: Float[Array, "r d"]) -> BoxOutputs:
        """Returns no logits and the deltas of one box, in float32."""
        deltas = nn.Dense(4, kernel_init=nn.initializers.normal(0.001), name="bbox_pred")(x)
        return BoxOutputs(jnp.zeros((len(x), 0), jnp.float32), deltas[:, None].astype(jnp.float32))


class BoxAdjuster(nn.Module):
    """A pyramid and a head that reads boxes from it."""

    backbone: nn.Module
    roi_heads: RoIHeads
    """With `Deltas` for its `box_predictor`."""
    pixel_mean: tuple[float, float, float] = norm.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = norm.IMAGENET_STD

    def __call__(self, images: Images) -> Float[Array, "b 1 4"]:
        """Moves the boxes of the pictures as a whole, for `init`."""
        boxes = box_ops.frames(images.sizes)[:, None]
        return self.deltas(self.maps(images, train=False), boxes, images)

    def maps(self, images: Images, *, train: bool) -> tuple[Array, ...]:
        """Returns the pyramid of normalized images."""
        pixels = norm.normalized(images, mean=self.pixel_mean, std=self.pixel_std)
        return self.backbone(pixels, images.sizes, train=train)

    def deltas(
        self, pyramid: tuple[Array, ...], boxes: Float[Array, "b n 4"], images: Images
    ) -> Float[Array, "b n 4"]:
        """Returns how boxes should move, coded."""
        canvas = (images.pixels.shape[1], images.pixels.shape[2])
        return self.roi_heads(pyramid, boxes, canvas).deltas[:, :, 0]


def build(
    architecture: Architecture,
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> BoxAdjuster:
    """Returns the network.

    Args:
      architecture: Its numbers.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers; boxes and losses are float32 always.
    """
    spec = architecture
    body = networks.build(spec.network, num_classes=1, axis_name=axis_name, dtype=dtype)
    return BoxAdjuster(
        fpn.SingleLevelBackbone(body),
        RoIHeads(TwoMLPHead(spec.features, dtype), Deltas(), 1, aligned=True),
    )


def jitter(
    key: PRNGKeyArray,
    boxes: Float[Array, "n 4"],
    *,
    n_candidates: int,
    shift: float,
    stretch: float,
) -> Float[Array, "n m 4"]:
    """Returns boxes near others: shifted, and with other sides.

    Args:
      key: Of all draws, which are uniform.
      boxes: xyxy pixels.
      n_candidates: m, of each box.
      shift: Largest shift along an axis, in sides of the box, >= 0.
      stretch: Largest change of a side's logarithm, >= 0.
    """
    limits = jnp.array([shift, shift, stretch, stretch]).reshape(1, 1, 4)
    shape = (len(boxes), n_candidates, 4)
    deltas = limits * jax.random.uniform(key, shape, minval=-1, maxval=1)
    return coders.decode_boxes(deltas, jnp.broadcast_to(boxes[:, None], shape))


def loss(
    model: BoxAdjuster,
    variables: Any,
    batch: Batch,
    *,
    train: bool,
    options: LossOptions = LossOptions(),
) -> tuple[dict[str, Term], Aux]:
    """Returns the smooth L1 loss of moving candidates onto their objects.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      batch: With keys, one an image.
      train: Whether norms use (and move) the statistics of the batch.
      options: What is learnt from.

    Returns:
      (sum, count) of `box`, the count that of candidates, and `Aux`, whose metrics are the mean
      IoU of candidates before (`iou_before`) and after one step (`iou_after`).
    """
    run = functools.partial(_loss, batch=batch, train=train, options=options)
    return steps.bound_loss(run, model, variables, train=train)


def _loss(
    model: BoxAdjuster, *, batch: Batch, train: bool, options: LossOptions
) -> tuple[dict[str, Term], dict[str, Term]]:
    if batch.keys is None:
        raise ValueError("`batch.keys` is None: candidates are drawn, so each image needs a key.")
    images, truth = batch.images, batch.instances
    draw = functools.partial(
        jitter, n_candidates=options.n_candidates, shift=options.shift, stretch=options.stretch
    )
    keys = jax.vmap(jax.random.split)(batch.keys)
    drawn = jax.vmap(draw)(keys[:, 0], truth.boxes)
    # Far and near: a later step begins where an earlier one ended.
    share = jax.vmap(lambda key: jax.random.uniform(key, (*drawn.shape[1:3], 1)))(keys[:, 1])
    drawn = truth.boxes[:, :, None] + share * (drawn - truth.boxes[:, :, None])
    shape = (len(drawn), -1, 4)
    targets = jnp.broadcast_to(truth.boxes[:, :, None], drawn.shape).reshape(shape)
    counts = truth.objects & (batch.records >= 0)[:, None]
    counts = jnp.repeat(counts, options.n_candidates, axis=1)
    candidates = jax.vmap(box_ops.clip)(drawn.reshape(shape), images.sizes)
    # What lies outside of the picture has no way back.
    counts &= box_ops.area(candidates) > 0

    deltas = model.deltas(model.maps(images, train=train), candidates, images)
    wanted = coders.encode_boxes(targets, candidates, weights=BOX_WEIGHTS)
    moved = coders.decode_boxes(deltas, candidates, weights=BOX_WEIGHTS)
    terms = {
        "box": classification.weighted_sum(
            box_losses.smooth_l1(deltas, wanted, beta=options.beta), counts
        )
    }
    metrics = {
        "iou_before": classification.weighted_sum(iou_ops.iou(candidates, targets), counts),
        "iou_after": classification.weighted_sum(iou_ops.iou(moved, targets), counts),
    }
    return terms, metrics


def adjust(
    model: BoxAdjuster,
    variables: Any,
    images: Images,
    boxes: Float[Array, "b n 4"],
    *,
    max_steps: int = 10,
    tolerance: float = 1.0,
) -> Settled:
    """Moves boxes until they settle; the images are looked at once.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      images: Pictures on a canvas.
      boxes: Where to start, xyxy pixels, clipped first; padding may be among them.
      max_steps: As in `settle`.
      tolerance: As in `settle`.
    """
    pyramid: Any = model.apply(variables, images, train=False, method="maps")
    clip = jax.vmap(box_ops.clip)

    def step(boxes: Array) -> Array:
        deltas: Any = model.apply(variables, pyramid, boxes, images, method="deltas")
        moved = coders.decode_boxes(deltas, boxes, weights=BOX_WEIGHTS)
        return clip(moved, images.sizes)

    start = clip(boxes, images.sizes)  # As those that are learnt from.
    return settle(step, start, max_steps=max_steps, tolerance=tolerance)


def settle(
    step: Callable[[Float[Array, "b n 4"]], Float[Array, "b n 4"]],
    boxes: Float[Array, "b n 4"],
    *,
    max_steps: int,
    tolerance: float,
) -> Settled:
    """Applies a step to boxes again and again; each stops by itself.

    A box settles when a step would move none of its sides by as much as `tolerance`; it stays where
    it was, so that settled boxes, given again, come back as they are.

    Args:
      step: From boxes to better ones, each by itself.
      boxes: Where to start.
      max_steps: Most moves of a box, >= 0.
      tolerance: Pixels, > 0.
    """
    if max_steps < 0 or tolerance <= 0:
        raise ValueError(f"max_steps must be >= 0, tolerance > 0. Got {max_steps} and {tolerance}.")

    def goes_on(state: Settled) -> Array:
        return (state.n_steps < max_steps) & ~jnp.all(state.settled)

    def move(state: Settled) -> Settled:
        moved = step(state.boxes)
        still = jnp.max(jnp.abs(moved - state.boxes), axis=-1) < tolerance
        settled = state.settled | still
        boxes = jnp.where(settled[..., None], state.boxes, moved)
        return Settled(boxes, settled, state.n_steps + 1)

    start = Settled(boxes, jnp.zeros(boxes.shape[:-1], bool), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(goes_on, move, start)
