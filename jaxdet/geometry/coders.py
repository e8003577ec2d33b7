"""Codes between boxes or points and the numbers a regressor predicts.

boxes     (x1, y1, x2, y2), pixels, half-open.
deltas    (dx, dy, dw, dh), no unit; see `encode_boxes`.
points    (x, y), pixels; corners of boxes or joints of a pose, see `encode_points`.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.geometry import boxes as box_ops

# A wild early prediction must not overflow exp(): 16 px may grow to 1000 px.
MAX_LOG_SCALE = math.log(1000 / 16)
# Padded rows have no area; log(0) would be NaN even under a zero weight.
MIN_SIDE = 1e-3  # px

Weights = tuple[float | int, float | int, float | int, float | int]


def encode_boxes(
    boxes: Float[Array, "*b 4"],
    anchors: Float[Array, "*b 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*b 4"]:
    """Returns the deltas that carry each anchor onto its box.

        (dx, dy) = (center - anchor center) / anchor size * weights[:2]
        (dw, dh) = log(size / anchor size) * weights[2:]

    Args:
      boxes: Where to go, xyxy pixels; sides under 1e-3 count as 1e-3.
      anchors: Where to start, xyxy pixels, aligned with `boxes`; the same.
      weights: Factors of (dx, dy, dw, dh), no unit: 1 / their spread over the training set.

    Returns:
      Deltas, no unit. Inverse: `decode_boxes`.

    Source:
      R-CNN (Girshick et al. 2014, arXiv:1311.2524v5), appendix C, eqs. 6-9.

    Departures:
      `weights` are 1 in the paper; (10, 10, 5, 5) in Fast R-CNN's heads since py-faster-rcnn.
    """
    centers, sizes = box_ops.centers_and_sizes(boxes)
    anchor_centers, anchor_sizes = box_ops.centers_and_sizes(anchors)
    sizes, anchor_sizes = jnp.maximum(sizes, MIN_SIDE), jnp.maximum(anchor_sizes, MIN_SIDE)
    shifts = (centers - anchor_centers) / anchor_sizes
    deltas = jnp.concatenate([shifts, jnp.log(sizes / anchor_sizes)], axis=-1)
    return deltas * _spread(weights, deltas.shape)


def decode_boxes(
    deltas: Float[Array, "*b 4"],
    anchors: Float[Array, "*b 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*b 4"]:
    """Returns the boxes to which deltas carry their anchors; the inverse of `encode_boxes`.

        center = anchor center + (dx, dy) / weights[:2] * anchor size
        size = anchor size * exp(min((dw, dh) / weights[2:], log(1000 / 16)))

    Args:
      deltas: Predictions, no unit.
      anchors: Where to start, xyxy pixels, aligned with `deltas`.
      weights: Those of `encode_boxes`.

    Returns:
      Boxes, xyxy pixels, float32, not clipped to an image.

    Source:
      R-CNN (Girshick et al. 2014, arXiv:1311.2524v5), appendix C, eqs. 1-4.

    Departures:
      The limit of the growth is py-faster-rcnn's successors' (Detectron), not the paper's.
    """
    deltas = deltas.astype(jnp.float32) / _spread(weights, deltas.shape)
    centers, sizes = box_ops.centers_and_sizes(anchors.astype(jnp.float32))
    scales = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return box_ops.from_centers_and_sizes(deltas[..., :2] * sizes + centers, scales * sizes)


def encode_points(
    points: Float[Array, "*b j 2"], frames: Float[Array, "*b 4"]
) -> Float[Array, "*b j 2"]:
    """Returns where points are in a frame: (point - center) / size, -1/2 to 1/2 inside of it.

    Args:
      points: (x, y), pixels.
      frames: xyxy pixels, one for each set of j points; sides under 1e-3 count as 1e-3.

    Returns:
      Codes, no unit. Inverse: `decode_points`.

    Source:
      DeepPose (Toshev & Szegedy 2014, arXiv:1312.4659v3), section 3, the normalization N(y; b).
    """
    centers, sizes = box_ops.centers_and_sizes(frames)
    return (points - centers[..., None, :]) / jnp.maximum(sizes, MIN_SIDE)[..., None, :]


def decode_points(
    codes: Float[Array, "*b j 2"], frames: Float[Array, "*b 4"]
) -> Float[Array, "*b j 2"]:
    """Returns the points that codes stand for, pixels: center + code * size.

    Args:
      codes: Predictions, no unit.
      frames: xyxy pixels, one for each set of j points.
    """
    centers, sizes = box_ops.centers_and_sizes(frames.astype(jnp.float32))
    return centers[..., None, :] + codes.astype(jnp.float32) * sizes[..., None, :]


def _spread(weights: Weights, shape: tuple[int, ...]) -> Float[Array, "..."]:
    if min(weights) <= 0:
        raise ValueError(f"weights must be positive. Got {weights}")
    return jnp.broadcast_to(jnp.asarray(weights, jnp.float32), shape)
