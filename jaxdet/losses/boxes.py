"""Losses of box regression, one value per box.

Of codes or coordinates `l1` and `smooth_l1`; of whole boxes, 1 less what `geometry.iou` measures.
Values and gradients of the latter are finite for all boxes without NaN; where both boxes are
padding, the loss is 1 and has no gradient.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.geometry import iou as iou_ops


def l1(pred: Float[Array, "*b d"], target: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Absolute errors, summed over the last axis.

    Args:
      pred: Predictions.
      target: What they should be.

    Returns:
      Losses, float32, >= 0. The gradient at no error is 0.
    """
    return smooth_l1(pred, target, beta=0)


def smooth_l1(
    pred: Float[Array, "*b d"], target: Float[Array, "*b d"], *, beta: float | int
) -> Float[Array, "*b"]:
    """Squares of small errors, absolute values of large ones, summed over the last axis.

        e ** 2 / (2 * beta)  where |e| < beta,  |e| - beta / 2  elsewhere

    Args:
      pred: Predictions.
      target: What they should be.
      beta: Where the two pieces meet, unit of `pred`, >= 0; 0 is the L1 loss.

    Returns:
      Losses, float32, >= 0. The gradient at no error is 0, with beta = 0 too.

    Source:
      Fast R-CNN (Girshick 2015, arXiv:1504.08083v2), eq. 3.

    Departures:
      `beta` is 1 in the paper; 1 / 9 in py-faster-rcnn's RPN and in torchvision.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative. Got {beta}")
    error = pred.astype(jnp.float32) - target.astype(jnp.float32)
    error *= jnp.sign(error)  # The gradient of jnp.abs is 1 at 0.
    if beta == 0:
        return jnp.sum(error, axis=-1)
    small = jnp.minimum(error, beta)
    # With q = min(|e|, beta): q ** 2 / (2 beta) + (|e| - q); one formula, no branch in gradients.
    return jnp.sum(small * small / (2 * beta) + error - small, axis=-1)


def iou_loss(boxes: Float[Array, "*b 4"], targets: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """1 - IoU.

    Args:
      boxes: Predictions, xyxy pixels.
      targets: What they should be, xyxy pixels.

    Returns:
      Losses, 0 (equal) to 1, where boxes do not overlap: there, without gradient.

    Source:
      Generalized IoU (Rezatofighi et al. 2019, arXiv:1902.09630v2), algorithm 2.

    Departures:
      UnitBox (Yu et al. 2016, arXiv:1608.01471v1), where the loss is from, has -log(IoU), which is
      infinite for boxes that do not overlap.
    """
    return 1 - iou_ops.iou(*_float32(boxes, targets))


def giou_loss(boxes: Float[Array, "*b 4"], targets: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """1 - generalized IoU, see `geometry.iou.giou`.

    Args:
      boxes: Predictions, xyxy pixels.
      targets: What they should be, xyxy pixels.

    Returns:
      Losses, 0 (equal) to 2 (far apart).

    Source:
      Generalized IoU (Rezatofighi et al. 2019, arXiv:1902.09630v2), algorithm 2.

    Departures:
      In this and the next two no small number is added to what is divided by, as it is in
      torchvision (1e-7), where tiny boxes that are equal have a loss.
    """
    return 1 - iou_ops.giou(*_float32(boxes, targets))


def diou_loss(boxes: Float[Array, "*b 4"], targets: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """1 - distance IoU, see `geometry.iou.diou`.

    Args:
      boxes: Predictions, xyxy pixels.
      targets: What they should be, xyxy pixels.

    Returns:
      Losses, 0 (equal) to 2 (far apart).

    Source:
      Distance-IoU (Zheng et al. 2020, arXiv:1911.08287v1), eq. 7.
    """
    return 1 - iou_ops.diou(*_float32(boxes, targets))


def ciou_loss(boxes: Float[Array, "*b 4"], targets: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """1 - complete IoU, see `geometry.iou.ciou`.

    Args:
      boxes: Predictions, xyxy pixels.
      targets: What they should be, xyxy pixels.

    Returns:
      Losses, 0 (equal) to 3.

    Source:
      Distance-IoU (Zheng et al. 2020, arXiv:1911.08287v1), eq. 10.

    Departures:
      Boxes without height have a shape here; in torchvision, whose w / h is then infinite or 0 / 0,
      they give NaN in the gradient or in both.
    """
    return 1 - iou_ops.ciou(*_float32(boxes, targets))


def _float32(*boxes: Array) -> list[Array]:
    return [b.astype(jnp.float32) for b in boxes]
