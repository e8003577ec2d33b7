"""How good poses are: shares of joints and limbs that are found, apart for each.

joints    Predicted (x, y), pixels; true ones are keypoints (x, y, visibility), of which those
          of visibility 0 are not labelled and count neither for nor against.
counts    (found, counted), one number for each joint or limb: add up over pictures, then divide.

Letters: j joints and l limbs of an object, s stages of a cascade.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import keypoints as keypoint_ops
from jaxdet.structures import Instances

PCK_THRESHOLD = 0.1  # Of the box's diagonal, in `sums`.
PDJ_THRESHOLD = 0.2  # Of the torso's diameter.
Counts = tuple[Float[Array, " j"], Float[Array, " j"]]


class Errors(NamedTuple):
    """How a stage is wrong about each joint, in diameters of the pose: a normal distribution."""

    mean: tuple[tuple[float, float], ...]  # (x, y) of each joint.
    std: tuple[tuple[float, float], ...]


def pck(
    joints: Float[Array, "*b j 2"],
    truth: Float[Array, "*b j 3"],
    boxes: Float[Array, "*b 4"],
    *,
    threshold: float,
) -> Counts:
    """Percentage of correct keypoints: joints off by at most a share of the object's size.

        |joint - truth| <= threshold * diagonal of the box

    Args:
      joints: Predictions.
      truth: What they should be.
      boxes: Of the objects, xyxy pixels; objects without area do not count.
      threshold: Share of the diagonal.

    Returns:
      Counts of each joint.

    Source:
      Yang & Ramanan 2013 (IEEE Transactions on Pattern Analysis and Machine Intelligence 35),
      section 6.1.

    Departures:
      The size is the diagonal, where the paper takes the longer side.
    """
    sides = box_ops.centers_and_sizes(boxes)[1]
    diagonals = jnp.where(box_ops.area(boxes) > 0, jnp.linalg.norm(sides, axis=-1), 0)
    return _within(joints, truth, threshold * diagonals)


def pdj(
    joints: Float[Array, "*b j 2"],
    truth: Float[Array, "*b j 3"],
    *,
    torso: tuple[int, int],
    threshold: float,
) -> Counts:
    """Percentage of detected joints: joints off by at most a share of the torso's diameter.

    Args:
      joints: Predictions.
      truth: What they should be.
      torso: Two joints on opposite ends of the torso, such as left shoulder and right hip; objects
        of which one is not labelled do not count.
      threshold: Share of their distance.

    Returns:
      Counts of each joint.

    Source:
      DeepPose (Toshev & Szegedy 2014, arXiv:1312.4659v3), section 4.1, "Metrics".
    """
    diameters, _ = keypoint_ops.distances(truth, [torso])
    return _within(joints, truth, threshold * diameters[..., 0])


def pcp(
    joints: Float[Array, "*b j 2"],
    truth: Float[Array, "*b j 3"],
    *,
    limbs: Sequence[tuple[int, int]],
    threshold: float = 0.5,
) -> tuple[Float[Array, " l"], Float[Array, " l"]]:
    """Percentage of correct parts: limbs of which both ends are off by at most half their length.

    Args:
      joints: Predictions.
      truth: What they should be; limbs without length do not count.
      limbs: The two joints of each limb.
      threshold: Share of the limb's length.

    Returns:
      Counts of each limb.

    Source:
      DeepPose (Toshev & Szegedy 2014, arXiv:1312.4659v3), section 4.1, "Metrics".
    """
    lengths, _ = keypoint_ops.distances(truth, limbs)
    errors = jnp.linalg.norm(joints - truth[..., :2], axis=-1)
    ends = jnp.stack([errors[..., list(side)] for side in zip(*limbs, strict=True)])
    return _counts(jnp.max(ends, axis=0) <= threshold * lengths, lengths > 0)


def labelled(truth: Instances) -> Float[Array, "b n j 3"]:
    """Returns the keypoints of objects that count; those of others are as if not labelled."""
    return jnp.asarray(truth.keypoints) * jnp.asarray(truth.objects)[..., None, None]


def sums(
    joints: Float[Array, "b n s j 2"],
    truth: Instances,
    *,
    torso: tuple[int, int],
    limbs: Sequence[tuple[int, int]],
) -> dict[str, tuple[Float[Array, " _"], Float[Array, " _"]]]:
    """Returns the measures of a batch as counts, to be added up over batches; `mean` divides.

    Args:
      joints: After each stage of a cascade, pixels; the last is the result.
      truth: With keypoints; those of crowds and difficult objects count neither way.
      torso: As in `pdj`.
      limbs: As in `pcp`.

    Returns:
      `PCK` at a tenth of the box's diagonal, `PDJ` at a fifth of the torso's diameter and `PCP` of
      the last stage; `PCK1`, `PCK2`, ... after each stage.
    """
    keypoints, last = labelled(truth), joints[:, :, -1]
    each = [
        pck(joints[:, :, stage], keypoints, truth.boxes, threshold=PCK_THRESHOLD)
        for stage in range(joints.shape[2])
    ]
    return {
        "PCK": each[-1],
        "PDJ": pdj(last, keypoints, torso=torso, threshold=PDJ_THRESHOLD),
        "PCP": pcp(last, keypoints, limbs=limbs),
    } | {f"PCK{stage + 1}": counts for stage, counts in enumerate(each)}


def mean(counts: Counts) -> Float[Array, ""]:
    """The mean over joints or limbs of the share found; those that never count are left out."""
    found, counted = counts
    shares = found / jnp.maximum(counted, 1)
    return jnp.sum(shares) / jnp.maximum(jnp.sum(counted > 0), 1)


def measure_errors(
    joints: Float[np.ndarray, "n j 2"],
    truth: Float[np.ndarray, "n j 3"],
    sizes: Float[np.ndarray, " n"],
) -> Errors:
    """Returns how a stage is wrong, over the training set: what the next one must expect.

    Args:
      joints: What the stage said, pixels.
      truth: (x, y, visibility); joints of visibility 0 are left out.
      sizes: Diameters of the true poses, pixels, above 0.

    Returns:
      Mean and standard deviation of each joint's errors; 0 for joints that are never labelled.

    Source:
      Toshev & Szegedy 2014 (arXiv:1312.4659v3), section 3.2, "Training".
    """
    off = (joints - truth[..., :2]) / sizes[:, None, None]
    known = truth[..., 2:] > 0
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.sum(off, axis=0, where=known) / count
    std = np.sqrt(np.sum((off - mean[None]) ** 2, axis=0, where=known) / count)
    return Errors(*(tuple((float(x), float(y)) for x, y in rows) for rows in (mean, std)))


def _within(
    joints: Float[Array, "*b j 2"], truth: Float[Array, "*b j 3"], limits: Float[Array, "*b"]
) -> Counts:
    errors = jnp.linalg.norm(joints - truth[..., :2], axis=-1)
    counted = (truth[..., 2] > 0) & (limits > 0)[..., None]
    return _counts(errors <= limits[..., None], counted)


def _counts(found: Bool[Array, "*b j"], counted: Bool[Array, "*b j"]) -> Counts:
    axes = tuple(range(counted.ndim - 1))
    return jnp.sum(found & counted, axes, jnp.float32), jnp.sum(counted, axes, jnp.float32)
