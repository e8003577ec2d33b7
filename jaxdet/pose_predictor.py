"""From a trained DeepPose and annotated pictures to poses: of objects whose boxes are known.

As in `predictor`, each picture is looked at once over all processes, and results are in pixels of
the pictures themselves.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from jaxdet import feeds
from jaxdet.data.records import Source
from jaxdet.metrics import coco, pose
from jaxdet.metrics.pose import Errors
from jaxdet.structures import Batch, Images
from jaxdet.systems import deep_pose
from jaxdet.systems.deep_pose import DeepPose, Poses
from jaxdet.training import parallel, processes
from jaxdet.viz import draw, objects

_sums = jax.jit(pose.sums, static_argnames=("torso", "limbs"))


@dataclasses.dataclass(frozen=True)
class PosePredictor:
    """A cascade up to one of its stages, compiled for all devices."""

    predict: Callable[[Any, Any], Poses]
    """`predict(variables, (images, boxes, valid))`, the batch divisible by the number of
    devices."""
    torso: tuple[int, int]
    """See `DeepPose`."""
    canvases: tuple[tuple[int, int], ...]
    """(height, width) of the arrays that pictures are resized onto."""


def compile_stages(
    model: DeepPose, *, n_stages: int, canvases: tuple[tuple[int, int], ...]
) -> PosePredictor:
    """Compiles the first stages of a cascade.

    Args:
      model: The architecture.
      n_stages: How many of its stages, above 0.
      canvases: (height, width) of the arrays that pictures are resized onto.
    """
    model = model.clone(stages=model.stages[:n_stages])

    def predict(variables: Any, inputs: Any) -> Poses:
        return deep_pose.predict(model, variables, *inputs)

    return PosePredictor(parallel.parallel_map(predict), model.torso, canvases)


def measure(
    predictor: PosePredictor,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    limbs: tuple[tuple[int, int], ...],
) -> dict[str, float]:
    """Returns the shares of joints and limbs found on boxes of the true objects.

    Args:
      predictor: From `compile_stages`.
      variables: Of the model, on all devices.
      source: Pictures with keypoints.
      batch_size: Pictures at once, over all processes; their devices must divide it.
      limbs: Pairs of joints that PCP is about.

    Returns:
      Means of `metrics.pose.sums` by name, over all processes.
    """
    found = [
        _sums(poses.joints, batch.instances, torso=predictor.torso, limbs=limbs)
        for batch, poses in _looked_at(predictor, variables, source, batch_size)
    ]
    every = itertools.chain(*processes.gather(jax.device_get(found)))
    total = jax.tree.map(lambda *x: jnp.asarray(sum(x)), *every)
    return {name: float(pose.mean(counts)) for name, counts in total.items()}


def measure_errors(
    predictor: PosePredictor, variables: Any, source: Source, *, batch_size: int
) -> Errors:
    """Returns how the last stage is wrong, over all processes: what the next one must expect.

    Args:
      predictor: From `compile_stages`.
      variables: Of the model, on all devices.
      source: Training pictures with keypoints.
      batch_size: As in `measure`.
    """
    rows = []
    for batch, poses in _looked_at(predictor, variables, source, batch_size):
        truth = pose.labelled(batch.instances)
        sizes = deep_pose.diameters(truth, jnp.asarray(batch.instances.boxes), predictor.torso)
        arrays = (poses.joints[:, :, -1], np.asarray(truth), np.asarray(sizes))
        rows.append([x[batch.instances.valid] for x in arrays])
    every = itertools.chain(*processes.gather(rows))
    return pose.measure_errors(*map(np.concatenate, zip(*every, strict=True)))


def find(
    predictor: PosePredictor, variables: Any, source: Source, *, batch_size: int
) -> list[dict[str, Any]]:
    """Finds the joints of every object that is no crowd.

    Args:
      predictor: From `compile_stages`.
      variables: Of the model, on all devices.
      source: Pictures with boxes; keypoints are not looked at.
      batch_size: As in `measure`.

    Returns:
      Rows of a COCO results file, in pixels of the pictures: all of them in every process, in the
      same order for any number of processes.
    """
    found = _looked_at(predictor, variables, source, batch_size, with_keypoints=False)
    rows = []
    for batch, poses in found:
        shown, truth = feeds.pictures_of(batch, source), batch.instances
        rows += coco.results_from_poses(
            poses.joints[:, :, -1],
            truth.labels,
            truth.valid & ~truth.crowd,
            image_ids=shown.image_ids,
            scales=shown.scales,
            category_ids=source.category_ids,
        )
    return feeds.gathered(rows, source, canvases=predictor.canvases)


def contact_sheet(
    predictor: PosePredictor,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    n_pictures: int,
    columns: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the first objects with their true joints and those after each stage.

    Args:
      predictor: From `compile_stages`.
      variables: Of the model, on all devices.
      source: Pictures with keypoints; of several processes, each draws from its share.
      batch_size: As in `measure`.
      n_pictures: How many objects are drawn, if so many have a labelled joint.
      columns: Of the sheet.
    """
    looked_at = _looked_at(predictor, variables, source, batch_size)
    drawn = itertools.chain.from_iterable(itertools.starmap(_drawn, looked_at))
    return draw.contact_sheet(list(itertools.islice(drawn, n_pictures)), columns)


def _drawn(batch: Batch, found: Poses) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    truth = np.asarray(pose.labelled(batch.instances))
    for i, n in zip(*np.nonzero(truth[..., 2].any(axis=2)), strict=True):
        seen = truth[i, n, :, 2:]
        poses = {"truth": truth[i, n]}
        for stage, joints in enumerate(found.joints[i, n]):
            poses[f"stage {stage + 1}"] = np.concatenate([joints, seen], axis=1)
        box = np.asarray(batch.instances.boxes[i, n])
        yield objects.draw_poses(np.asarray(batch.images.pixels[i]), box, poses)


def _looked_at(
    predictor: PosePredictor,
    variables: Any,
    source: Source,
    batch_size: int,
    *,
    with_keypoints: bool = True,
) -> Iterator[tuple[Batch, Poses]]:
    """This process's share of the pictures, and the poses in them."""
    batches = feeds.evaluation(
        source,
        canvases=predictor.canvases,
        batch_size=batch_size,
        with_keypoints=with_keypoints,
    )
    for batch in batches():
        yield batch, _poses_of(predictor, variables, batch)


def _poses_of(predictor: PosePredictor, variables: Any, batch: Batch) -> Poses:
    """Looks at as many objects at once as there are pictures, and only at those that count."""
    images, truth = jax.device_get((batch.images, batch.instances))
    objects = np.argwhere(truth.valid & ~truth.crowd)
    n = len(images.sizes)
    parts = []
    for start in range(0, max(len(objects), 1), n):
        part = objects[start : start + n]
        picture, row = np.pad(part, ((0, n - len(part)), (0, 0))).T
        inside = np.arange(n) < len(part)
        shown = Images(images.pixels[picture], images.sizes[picture])
        given = (shown, truth.boxes[picture, row][:, None], inside[:, None])
        found = jax.device_get(predictor.predict(variables, given))
        parts.append(found.joints[: len(part), 0])
    found = np.concatenate(parts)
    joints = np.zeros((*truth.valid.shape, *found.shape[1:]), found.dtype)
    joints[tuple(objects.T)] = found
    return Poses(joints, truth.valid)
