"""Faster R-CNN: a network that proposes boxes, and one that classifies and corrects them.

b h w  images in a batch, height and width of the canvas.    n  objects or boxes of an image.
k      classes, background (0) included.

    images -> features -> pyramid -> propose -> boxes -> classify -> Detections

Source:
  Ren et al. 2015 (arXiv:1506.01497v3); with feature pyramids Lin et al. 2017 (arXiv:1612.03144v2).
  Defaults are torchvision's `fasterrcnn_resnet50_fpn`.

Departures:
  Joint training is exact in the sampled boxes but not through them (section 3.2's "approximate
  joint training"), unless `stop_proposal_gradient` is off. Crowds and difficult objects are
  neither objects nor background: boxes inside them are left out of the losses.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdet.features import norm
from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import coders, nms
from jaxdet.geometry import iou as iou_ops
from jaxdet.losses.classification import Term
from jaxdet.proposals import rpn
from jaxdet.proposals.rpn import RPNOutputs
from jaxdet.regions import heads, roi_loss
from jaxdet.structures import Batch, Detections, Images, Proposals
from jaxdet.training import steps
from jaxdet.training.steps import Aux


class LossOptions(NamedTuple):
    """What a training step samples."""

    anchors: rpn.RPNTargets = rpn.RPNTargets()
    proposals: rpn.ProposalOptions = rpn.ProposalOptions(pre_nms=2000, post_nms=2000)
    positive_iou: float = 0.5  # From here on a proposal is of the object's class, below background.
    sample_size: int = 512  # Proposals of an image in the loss.
    positive_fraction: float = 0.25
    beta: float = 1 / 9  # Of the smooth L1 loss.
    stop_proposal_gradient: bool = True


class DetectOptions(NamedTuple):
    """Which boxes become detections."""

    score_threshold: float = 0.05  # Less likely boxes are left out, 0 to 1.
    iou_threshold: float = 0.5  # Boxes of one class overlapping a better one by more are left out.
    max_detections: int = 100  # Of an image.
    max_candidates: int = 2000  # Of an image: the likeliest pairs of box and class that compete.
    proposals: rpn.ProposalOptions = rpn.ProposalOptions()  # Boxes that the head looks at.


class FasterRCNN(nn.Module):
    """The parameters and the three stages; `loss` and `detect` put them together."""

    backbone: nn.Module
    rpn: rpn.RPN
    roi_heads: heads.RoIHeads
    pixel_mean: tuple[float, float, float] = norm.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = norm.IMAGENET_STD

    def __call__(self, images: Images) -> heads.BoxOutputs:
        """Runs every stage once, for `init`: the picture itself is the only box."""
        pyramid = self.features(images, train=False)
        self.objectness(pyramid, images)
        sizes = images.sizes.astype(jnp.float32)[:, None]
        return self.classify(
            pyramid, jnp.concatenate([jnp.zeros_like(sizes), sizes[..., ::-1]], axis=-1), images
        )

    def features(self, images: Images, *, train: bool) -> tuple[Array, ...]:
        """Returns the pyramid of normalized images; what lies outside of a picture is zero."""
        pixels = norm.normalized(images, mean=self.pixel_mean, std=self.pixel_std)
        return self.backbone(pixels, images.sizes, train=train)

    def objectness(self, pyramid: tuple[Array, ...], images: Images) -> RPNOutputs:
        """Returns what the region proposal network says of every anchor."""
        return self.rpn(pyramid, _canvas(images))

    def classify(
        self,
        pyramid: tuple[Array, ...],
        boxes: Float[Array, "b n 4"],
        images: Images,
        *,
        valid: Bool[Array, "b n"] | None = None,
        train: bool = False,
    ) -> heads.BoxOutputs:
        """Returns what the head says of boxes in canvas pixels; see `RoIHeads`."""
        return self.roi_heads(pyramid, boxes, _canvas(images), valid=valid, train=train)


def loss(
    model: FasterRCNN,
    variables: Any,
    batch: Batch,
    *,
    train: bool,
    options: LossOptions = LossOptions(),
) -> tuple[dict[str, Term], Aux]:
    """Returns the four losses of a batch.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      batch: With keys, one an image.
      train: Whether norms use (and move) the statistics of the batch.
      options: What is sampled.

    Returns:
      (sum, count) of `rpn_objectness`, `rpn_box`, `roi_class` and `roi_box`, and `Aux`, whose
      metrics are the share of objects with a proposal of IoU >= 0.5 (`proposal_recall`) and of
      sampled objects that get their class (`roi_accuracy`).
    """
    run = functools.partial(_loss, batch=batch, train=train, options=options)
    return steps.bound_loss(run, model, variables, train=train)


def _loss(
    model: FasterRCNN, *, batch: Batch, train: bool, options: LossOptions
) -> tuple[dict[str, Term], dict[str, Term]]:
    images, truth = batch.images, batch.instances
    if batch.keys is None:
        raise ValueError("`batch.keys` is None: training samples boxes, so each image needs a key.")
    objects, regions = truth.objects, truth.regions
    keys = jax.vmap(jax.random.split)(batch.keys)

    pyramid = model.features(images, train=train)
    outputs = model.objectness(pyramid, images)
    rpn_terms = jax.vmap(
        functools.partial(rpn.rpn_loss, options=options.anchors), in_axes=(0, 0, 0, None, 0, 0, 0)
    )(keys[:, 0], outputs.logits, outputs.deltas, outputs.anchors, truth.boxes, objects, regions)

    proposals = rpn.propose_batch(outputs, images.sizes, options=options.proposals)
    if options.stop_proposal_gradient:
        proposals = jax.lax.stop_gradient(proposals)
    sample_rois = functools.partial(
        roi_loss.sample_rois,
        positive_iou=options.positive_iou,
        sample_size=options.sample_size,
        positive_fraction=options.positive_fraction,
    )
    sample = jax.vmap(sample_rois)(
        keys[:, 1], proposals.boxes, proposals.valid, truth, objects, regions
    )
    head = model.classify(pyramid, sample.boxes, images, valid=sample.valid, train=train)
    roi_terms = jax.vmap(functools.partial(roi_loss.box_head_loss, beta=options.beta))(head, sample)

    hits = (jnp.argmax(head.logits, axis=-1) == sample.labels) & sample.positive
    count = functools.partial(jnp.sum, axis=1, dtype=jnp.float32)
    metrics = {
        "proposal_recall": jax.vmap(_recall)(proposals.boxes, truth.boxes, objects),
        "roi_accuracy": (count(hits), count(sample.positive)),
    }
    # Sums over images; the step divides once all devices have added theirs. A picture that only
    # fills the batch has anchors, all of them background: it must not count.
    real = batch.records >= 0
    return jax.tree.map(lambda x: jnp.sum(jnp.where(real, x, 0)), (rpn_terms | roi_terms, metrics))


def _recall(
    proposals: Float[Array, "m 4"], boxes: Float[Array, "n 4"], objects: Bool[Array, " n"]
) -> Term:
    found = jnp.max(iou_ops.pairwise_iou(boxes, proposals), axis=1) >= 0.5
    return jnp.sum(found & objects, dtype=jnp.float32), jnp.sum(objects, dtype=jnp.float32)


def features(model: FasterRCNN, variables: Any, images: Images) -> tuple[Array, ...]:
    """Returns the feature pyramid, finest level first."""
    pyramid: Any = model.apply(variables, images, train=False, method=FasterRCNN.features)
    return pyramid


def propose(
    model: FasterRCNN,
    variables: Any,
    pyramid: tuple[Array, ...],
    images: Images,
    *,
    options: rpn.ProposalOptions = rpn.ProposalOptions(),
) -> Proposals:
    """Returns class-agnostic boxes in pixels of the canvas, best first."""
    outputs: Any = model.apply(variables, pyramid, images, method=FasterRCNN.objectness)
    return rpn.propose_batch(outputs, images.sizes, options=options)


def classify(
    model: FasterRCNN,
    variables: Any,
    pyramid: tuple[Array, ...],
    images: Images,
    boxes: Float[Array, "b n 4"],
) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
    """Returns the probability of each class, background first, and where each would have the box.

    Boxes are cut at the picture's border; a class-agnostic head gives all classes the same.
    """
    head: Any = model.apply(variables, pyramid, boxes, images, method=FasterRCNN.classify)
    shape = (*head.logits.shape, 4)
    moved = coders.decode_boxes(
        jnp.broadcast_to(head.deltas, shape),
        jnp.broadcast_to(boxes[:, :, None], shape),
        weights=roi_loss.BOX_WEIGHTS,
    )
    return jax.nn.softmax(head.logits), jax.vmap(box_ops.clip)(moved, images.sizes)


def detect(
    model: FasterRCNN,
    variables: Any,
    images: Images,
    *,
    options: DetectOptions = DetectOptions(),
) -> Detections:
    """Finds the objects in images.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      images: Pictures on a canvas.
      options: Thresholds and sizes.

    Returns:
      Boxes in pixels of the canvas, best first.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), section 3.1.

    Departures:
      `max_candidates` pairs of box and class compete, where torchvision takes all above the
      threshold; sizes must be fixed.
    """
    pyramid = features(model, variables, images)
    found = propose(model, variables, pyramid, images, options=options.proposals)
    scores, boxes = classify(model, variables, pyramid, images, found.boxes)
    scores = jnp.where(found.valid[..., None], scores, 0)
    return jax.vmap(functools.partial(select_detections, options=options))(scores, boxes)


def select_detections(
    scores: Float[Array, "n k"], boxes: Float[Array, "n k 4"], *, options: DetectOptions
) -> Detections:
    """Keeps the best boxes of each class of one image.

    Args:
      scores: Of each class, background first, 0 to 1.
      boxes: Where each class would have the box, xyxy pixels.
      options: Thresholds and sizes.
    """
    n_classes = scores.shape[1] - 1
    flat_scores, flat_boxes = scores[:, 1:].reshape(-1), boxes[:, 1:].reshape(-1, 4)
    # torchvision drops boxes with a side under 1e-2 px.
    large = jnp.all(flat_boxes[:, 2:] - flat_boxes[:, :2] >= 1e-2, axis=1)
    eligible = jnp.where(large & (flat_scores > options.score_threshold), flat_scores, -1.0)
    top, rows = jax.lax.top_k(eligible, min(options.max_candidates, len(eligible)))
    candidates, classes = flat_boxes[rows], rows % n_classes + 1
    kept = nms.batched_nms(
        candidates,
        top,
        classes,
        top >= 0,
        iou_threshold=options.iou_threshold,
        max_outputs=options.max_detections,
    )
    keep = kept.valid
    return Detections(
        boxes=jnp.where(keep[:, None], candidates[kept.indices], 0),
        scores=jnp.where(keep, top[kept.indices], 0),
        labels=jnp.where(keep, classes[kept.indices], 0).astype(jnp.int32),
        valid=keep,
    )


def _canvas(images: Images) -> tuple[int, int]:
    return images.pixels.shape[1], images.pixels.shape[2]
