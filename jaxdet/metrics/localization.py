"""Is the class right, and is the box? The measures of classification and localization.

g  guesses of one picture, best first.    n  its objects, padding included.    k  classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.geometry import iou as iou_ops
from jaxdet.structures import Detections, Instances

MIN_IOU = 0.5  # From here on a box is right.
N_GUESSES = 5


class Judgement(NamedTuple):
    """What is right about each guess."""

    class_right: Bool[Array, " g"]  # An object is of its class.
    right: Bool[Array, " g"]  # An object of its class overlaps its box enough.
    iou: Float[Array, " g"]  # With the object that its box overlaps most, of any class.


def among_top(logits: Float[Array, "*b k"], labels: Int[Array, "*b"], n: int) -> Bool[Array, "*b"]:
    """Returns whether the right class is among the `n` likeliest.

    Of equally likely classes the one of the lower number comes first, as with `jax.lax.top_k`.

    Args:
      logits: One a class.
      labels: 0 to k - 1.
      n: How many guesses there are.
    """
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    before = classes < labels[..., None]
    first = (logits > own) | ((logits == own) & before)
    return (jnp.sum(first, axis=-1) < n) & jnp.isfinite(own[..., 0])


def judge(
    labels: Int[Array, " g"],
    boxes: Float[Array, "g 4"],
    valid: Bool[Array, " g"],
    *,
    gt_labels: Int[Array, " n"],
    gt_boxes: Float[Array, "n 4"],
    gt_valid: Bool[Array, " n"],
) -> Judgement:
    """Holds guesses about a picture against what is in it.

    Args:
      labels: Of the guesses.
      boxes: Of the guesses, xyxy pixels.
      valid: Which guesses there are; the others are wrong.
      gt_labels: Of the objects.
      gt_boxes: Of the objects, xyxy pixels.
      gt_valid: Which objects there are.

    Source:
      ImageNet Large Scale Visual Recognition Challenge (Russakovsky et al. 2015,
      arXiv:1409.0575v3), section 4.2: a guess is right if its class is and its box overlaps any
      object of that class.

    Departures:
      An IoU of exactly 0.5 is enough. A picture may have objects of several classes.
    """
    overlaps = iou_ops.pairwise_iou(boxes, gt_boxes) * (valid[:, None] & gt_valid[None])
    same = (labels[:, None] == gt_labels[None]) & valid[:, None] & gt_valid[None]
    return Judgement(
        class_right=jnp.any(same, axis=1),
        right=jnp.any(same & (overlaps >= MIN_IOU), axis=1),
        iou=jnp.max(overlaps, axis=1, initial=0),
    )


def sums(guesses: Detections, truth: Instances) -> dict[str, tuple[Array, Array]]:
    """Returns the measures of a batch as (sum, count), to be added up over batches.

    Args:
      guesses: Best first; those after the fifth do not count.
      truth: Crowds and difficult objects are nothing to find; pictures without any other object
        do not count.

    Returns:
      `top1` and `top5`: the class is right, in the first or in one of five guesses;
      `localization_top1` and `localization_top5`: so is the box, in the same guess; `mean_iou`, of
      the first guess's box, whatever its class. 1 less `localization_top5` is ILSVRC's error.

    Source:
      As in `judge`.
    """

    def one(guesses: Detections, truth: Instances) -> tuple[Judgement, Array]:
        objects = truth.objects
        judged = judge(
            guesses.labels,
            guesses.boxes,
            guesses.valid,
            gt_labels=truth.labels,
            gt_boxes=truth.boxes,
            gt_valid=objects,
        )
        return judged, jnp.any(objects)

    truth = truth._replace(masks=None, keypoints=None)
    judged, counts = jax.vmap(one)(jax.tree.map(jnp.asarray, guesses), truth)
    total = jnp.sum(counts, dtype=jnp.float32)
    found = {
        "top1": judged.class_right[:, :1],
        "top5": judged.class_right[:, :N_GUESSES],
        "localization_top1": judged.right[:, :1],
        "localization_top5": judged.right[:, :N_GUESSES],
    }
    shares = {name: jnp.any(hits, axis=1) & counts for name, hits in found.items()}
    shares["mean_iou"] = jnp.where(counts, judged.iou[:, 0], 0)
    return {name: (jnp.sum(x, dtype=jnp.float32), total) for name, x in shares.items()}
