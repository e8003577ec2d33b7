"""What the box head is trained on: a sample of an image's boxes, what they hold, and the loss.

m  proposals and n  objects of one image.    k  classes, background (0) included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdet.geometry import coders
from jaxdet.losses import boxes as box_losses
from jaxdet.losses import classification
from jaxdet.regions.heads import BoxOutputs
from jaxdet.structures import Instances
from jaxdet.targets import matching, sampling

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class RoISample(NamedTuple):
    """The boxes of one image that its loss looks at."""

    boxes: Float[Array, "*b n 4"]
    labels: Int[Array, "*b n"]  # 0 for background.
    target_deltas: Float[Array, "*b n 4"]
    positive: Bool[Array, "*b n"]
    valid: Bool[Array, "*b n"]


@jax.named_scope("sampling")
def sample_rois(
    key: PRNGKeyArray,
    boxes: Float[Array, "m 4"],
    valid: Bool[Array, " m"],
    truth: Instances,
    objects: Bool[Array, " n"],
    regions: Bool[Array, " n"],
    *,
    positive_iou: float,
    sample_size: int,
    positive_fraction: float,
) -> RoISample:
    """Chooses proposals of one image and what the head should say of them.

    The objects themselves join the proposals, so that the head sees positives from the start.

    Args:
      key: Chooses the sample.
      boxes: Proposals, xyxy pixels.
      valid: Which of them there are.
      truth: Of this image.
      objects: Rows of the truth to be found.
      regions: Rows of the truth in which proposals are no mistakes.
      positive_iou: From here on a proposal is of the object's class, below background; 0 to 1.
      sample_size: Proposals to choose.
      positive_fraction: The largest share of objects among them, 0 to 1.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), section 2.3.

    Departures:
      Background is all below 0.5, not from 0.1 on, as in torchvision.
    """
    boxes = jnp.concatenate([boxes, truth.boxes])
    valid = jnp.concatenate([valid, objects])
    matches = matching.match_boxes(
        truth.boxes,
        objects,
        boxes,
        positive_iou=positive_iou,
        negative_iou=positive_iou,
        keep_best=False,
    )
    matches = matching.ignore_regions(matches, boxes, truth.boxes, regions)
    sample = sampling.sample_balanced(
        key,
        matches.positive & valid,
        matches.negative & valid,
        size=sample_size,
        positive_fraction=positive_fraction,
    )
    rois, matched = boxes[sample.index], matches.index[sample.index]
    return RoISample(
        boxes=jnp.where(sample.valid[:, None], rois, 0),
        labels=jnp.where(sample.positive, truth.labels[matched], 0),
        target_deltas=coders.encode_boxes(truth.boxes[matched], rois, weights=BOX_WEIGHTS),
        positive=sample.positive,
        valid=sample.valid,
    )


@jax.named_scope("roi_loss")
def box_head_loss(
    head: BoxOutputs, sample: RoISample, *, beta: float = 1 / 9
) -> dict[str, classification.Term]:
    """Returns one image's losses as (sum, count), the count that of sampled boxes.

    Args:
      head: What the head says of the sample.
      sample: The boxes and what it should say.
      beta: Of the smooth L1 loss.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), section 2.3, eq. 1.
    """
    entropy = classification.softmax_cross_entropy(head.logits, sample.labels)
    of_class = jnp.minimum(sample.labels, head.deltas.shape[-2] - 1)
    deltas = jnp.take_along_axis(head.deltas, of_class[:, None, None], axis=1)[:, 0]
    distance = box_losses.smooth_l1(deltas, sample.target_deltas, beta=beta)
    entropy_sum, count = classification.weighted_sum(entropy, sample.valid)
    distance_sum, _ = classification.weighted_sum(distance, sample.positive)
    return {"roi_class": (entropy_sum, count), "roi_box": (distance_sum, count)}
