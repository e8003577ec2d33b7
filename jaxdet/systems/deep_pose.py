"""DeepPose: joints by regression, from the object's box first and from around each joint after.

b n    images in a batch, objects of an image.         j  joints of an object.    s  stages.
m      crops of an image in a training step.

    box -> crop -> all joints -> for each: box around it -> crop -> where it is after all -> ...

Joints are regressed in the frame of their crop: (joint - center) / size. Later stages see each
joint's neighbourhood at a finer scale, and correct that joint alone. They are trained on crops
around true joints, displaced as the stage before is wrong (`metrics.pose.measure_errors`); so one
stage is trained after the other (`LossOptions.stages`).

Source:
  Toshev & Szegedy 2014 (arXiv:1312.4659v3).

Departures:
  Objects' boxes come from outside, as the paper's come from a detector. A network puts out all
  joints of which a later stage reads its own one; so it is in the paper. Errors are measured in
  diameters of the pose, so that objects of all sizes share one distribution; a diameter is at least
  a tenth of the box's diagonal, and one pixel. Any backbone may take the place of the paper's,
  which is AlexNet with response normalization on crops of 220 x 220.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from jaxdet.features import dense, networks, norm
from jaxdet.features.conv import flatten, max_pool
from jaxdet.features.networks import Network
from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import coders
from jaxdet.geometry import keypoints as keypoint_ops
from jaxdet.image.crops import crop_resized
from jaxdet.losses import classification
from jaxdet.losses.classification import Term
from jaxdet.metrics.pose import Errors
from jaxdet.structures import Batch, Images, Instances
from jaxdet.targets import sampling
from jaxdet.training import steps
from jaxdet.training.steps import Aux

MIN_TORSO = 0.1  # Diagonals of the box; where shoulder and hip nearly coincide.


class Poses(NamedTuple):
    """Joints of objects, in pixels of the array they were found in."""

    joints: Float32[Any, "b n s j 2"]  # x, y, after each stage; the last is the result.
    valid: Bool[Any, "b n"]


class LossOptions(NamedTuple):
    """What a training step looks at."""

    stages: tuple[int, ...] | None = None  # Which are trained, 0 is the first; all if None.
    errors: tuple[Errors, ...] = ()  # Of stage 0, stage 1, ...; `spread` in all directions if none.
    spread: float = 0.1  # Diameters.
    sample_size: int = 8  # Crops of an image for each stage.


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A DeepPose in numbers that JSON can hold; the defaults are the paper's."""

    n_stages: int = 3
    network: Network = Network("alexnet", norm="none")
    """Of each stage, up to its last maps."""
    pool: int = 3
    """See `PoseRegressor`."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden dense layers."""
    dropout: float = 0.6
    torso: tuple[int, int] = (5, 12)
    """See `DeepPose`; COCO's left shoulder and right hip."""
    crop_size: int = 220
    """Side of the crops that networks read, pixels."""
    box_context: float = 1.0
    joint_context: float = 1.0


class PoseRegressor(nn.Module):
    """One stage: from crops to where all joints are in them.

    Source:
      Toshev & Szegedy 2014 (arXiv:1312.4659v3), section 3.1 and figure 2.
    """

    backbone: nn.Module
    """The last of its maps is pooled and read by the dense layers."""
    n_joints: int
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.6
    """Of the hidden layers."""
    pool: int = 3
    """Side of the windows of the last pooling, two cells apart; 0 for none."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, crops: Float[Array, "n h w 3"], *, train: bool, keys: Any = None
    ) -> Float[Array, "n j 2"]:
        """Returns joints in the frames of their crops.

        Args:
          crops: Normalized pixels.
          train: Whether there is dropout, and norms use the statistics of the batch.
          keys: One a crop, for dropout.
        """
        maps = self.backbone(crops, norm.whole(crops), train=train)[-1]
        x = flatten(max_pool(maps, kernel_size=self.pool, padding=0) if self.pool else maps)
        head = dense.DenseStack(
            (*self.hidden, 2 * self.n_joints), self.dropout, self.dtype, name="head"
        )
        return head(x, train=train, keys=keys).reshape(-1, self.n_joints, 2)


class DeepPose(nn.Module):
    """The parameters of all stages; `loss` and `predict` put them together."""

    stages: tuple[nn.Module, ...]
    """`PoseRegressor`s, alike or not."""
    torso: tuple[int, int]
    """Two joints on opposite ends, such as left shoulder and right hip; their distance is the
    pose's diameter, or a tenth of the box's diagonal if that is more. Where one of them is not
    labelled, half the diagonal is."""
    crop_size: int = 220
    """Side of the crops that networks read, pixels."""
    box_context: float = 1.0
    """Side of the first crop, relative to the object's box."""
    joint_context: float = 1.0
    """Side of later crops, in diameters of the pose; sigma in the paper."""
    pixel_mean: tuple[float, float, float] = norm.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = norm.IMAGENET_STD

    def __call__(self, images: Images) -> list[Float[Array, "b n j 2"]]:
        """Runs every stage once, for `init`: the picture itself is the only box."""
        boxes = box_ops.frames(images.sizes)[:, None]
        pixels = self.pixels(images)
        return [self.regress(i, pixels, boxes, train=False) for i in range(len(self.stages))]

    def pixels(self, images: Images) -> Float[Array, "b h w 3"]:
        """Returns normalized pixels."""
        return norm.normalized(images, mean=self.pixel_mean, std=self.pixel_std)

    def regress(
        self,
        stage: int,
        pixels: Float[Array, "b h w 3"],
        boxes: Float[Array, "b m 4"],
        *,
        train: bool,
        keys: Any = None,
    ) -> Float[Array, "b m j 2"]:
        """Returns where one stage sees the joints in the frames of boxes."""
        size = self.crop_size
        cut = functools.partial(crop_resized, size=size)
        # Where a picture ends, its crops go on in the mean colour.
        pieces = jax.vmap(cut)(pixels, boxes).reshape(-1, size, size, 3)
        keys = None if keys is None else keys.reshape(-1)
        joints = self.stages[stage](pieces, train=train, keys=keys)
        return joints.reshape(*boxes.shape[:2], *joints.shape[1:])

    def first_frames(self, boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
        """Returns the crops of the first stage, xyxy pixels."""
        centers, sizes = box_ops.centers_and_sizes(boxes)
        return box_ops.from_centers_and_sizes(centers, self.box_context * sizes)

    def joint_frames(
        self, joints: Float[Array, "*b j 2"], diameters: Float[Array, "*b"]
    ) -> Float[Array, "*b j 4"]:
        """Returns the crops around joints, xyxy pixels: eq. 6."""
        side = self.joint_context * diameters[..., None, None]
        return box_ops.from_centers_and_sizes(joints, jnp.broadcast_to(side, joints.shape))


def build(
    n_joints: int,
    architecture: Architecture = Architecture(),
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> DeepPose:
    """Returns the networks.

    Args:
      n_joints: Of an object.
      architecture: Their numbers.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers.
    """
    spec = architecture
    stages = tuple(
        PoseRegressor(
            networks.build(spec.network, num_classes=1, axis_name=axis_name, dtype=dtype),
            n_joints,
            spec.hidden,
            spec.dropout,
            spec.pool,
            dtype,
        )
        for _ in range(spec.n_stages)
    )
    return DeepPose(
        stages,
        torso=spec.torso,
        crop_size=spec.crop_size,
        box_context=spec.box_context,
        joint_context=spec.joint_context,
    )


def diameters(
    keypoints: Float[Array, "*b j 3"], boxes: Float[Array, "*b 4"], torso: tuple[int, int]
) -> Float[Array, "*b"]:
    """Returns diam(y) of poses, pixels, at least one; see `DeepPose.torso`.

    Args:
      keypoints: (x, y, visibility), pixels.
      boxes: Of the objects, xyxy pixels.
      torso: Indices of two joints.
    """
    lengths, known = keypoint_ops.distances(keypoints, [torso])
    diagonal = jnp.linalg.norm(boxes[..., 2:] - boxes[..., :2], axis=-1)
    torsos = jnp.maximum(lengths[..., 0], MIN_TORSO * diagonal)
    return jnp.maximum(jnp.where(known[..., 0], torsos, diagonal / 2), 1)


def loss(
    model: DeepPose,
    variables: Any,
    batch: Batch,
    *,
    train: bool,
    options: LossOptions = LossOptions(),
) -> tuple[dict[str, Term], Aux]:
    """Returns the losses of the stages: squared distances of joints, in the frames of their crops.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      batch: With keys, one an image, and keypoints; boxes are the objects'.
      train: Whether there is dropout, and norms use (and move) the statistics of the batch.
      options: What is sampled.

    Returns:
      (sum, count) of `stage1`, `stage2`, ... over labelled joints, and `Aux`, whose metrics are the
      same joints' distances in sides of the crop (`error1`, ...).

    Source:
      Toshev & Szegedy 2014 (arXiv:1312.4659v3), eqs. 3, 7 and 8.
    """
    run = functools.partial(_loss, batch=batch, train=train, options=options)
    return steps.bound_loss(run, model, variables, train=train)


class _Crops(NamedTuple):
    """What one stage is asked about one image."""

    frames: Float[Array, "m 4"]  # xyxy pixels.
    targets: Float[Array, "m j 2"]  # Where the joints are in the frame.
    counted: Bool[Array, "m j"]  # Which of them are asked for.


def _loss(
    model: DeepPose, *, batch: Batch, train: bool, options: LossOptions
) -> tuple[dict[str, Term], dict[str, Term]]:
    truth = batch.instances
    if batch.keys is None or truth.keypoints is None:
        raise ValueError("`batch.keys` and keypoints are needed: training samples crops of joints.")
    real = batch.records >= 0  # A picture that only fills the batch must not count.
    pixels = model.pixels(batch.images)
    terms, metrics = {}, {}
    for stage in range(len(model.stages)) if options.stages is None else options.stages:
        keys = jax.vmap(lambda key, s=stage: jax.random.split(jax.random.fold_in(key, s)))(
            batch.keys
        )
        sample = functools.partial(_sample, model=model, stage=stage, options=options)
        crops = jax.vmap(sample)(keys[:, 0], truth)
        each = jax.vmap(functools.partial(jax.random.split, num=options.sample_size))(keys[:, 1])
        codes = model.regress(stage, pixels, crops.frames, train=train, keys=each)
        squares = jnp.sum((codes - crops.targets) ** 2, axis=-1)
        counted = crops.counted & real[:, None, None]
        terms[f"stage{stage + 1}"] = classification.weighted_sum(squares, counted)
        distances = jnp.sqrt(jax.lax.stop_gradient(squares))
        metrics[f"error{stage + 1}"] = classification.weighted_sum(distances, counted)
    return terms, metrics


def _sample(
    key: Any, truth: Instances, *, model: DeepPose, stage: int, options: LossOptions
) -> _Crops:
    """Objects for the first stage, or pairs of an object and one of its joints."""
    keypoints = jnp.asarray(truth.keypoints)
    n_joints = keypoints.shape[1]
    labelled = (keypoints[..., 2] > 0) & truth.objects[:, None]
    key, noise_key = jax.random.split(key)
    eligible = labelled.any(axis=1) if stage == 0 else labelled.reshape(-1)
    drawn = sampling.sample_balanced(
        key, eligible, jnp.zeros_like(eligible), size=options.sample_size, positive_fraction=1
    )
    # Where there are fewer, a crop comes again: one of nothing would be in the statistics of norms.
    index = jnp.where(drawn.valid, drawn.index, drawn.index[jnp.argmax(drawn.valid)])
    rows, joint = (index, None) if stage == 0 else jnp.divmod(index, n_joints)
    poses, boxes, counted = keypoints[rows], truth.boxes[rows], labelled[rows]
    if joint is None:
        frames = model.first_frames(boxes)
    else:
        center, spread = _errors_of(stage - 1, n_joints, options)
        noise = jax.random.normal(noise_key, (options.sample_size, 2))
        size = diameters(poses, boxes, model.torso)
        moved = (center[joint] + spread[joint] * noise) * size[:, None]
        own = jnp.take_along_axis(poses[..., :2], joint[:, None, None], axis=1)
        frames = model.joint_frames(own + moved[:, None], size)[:, 0]
        counted &= joint[:, None] == jnp.arange(n_joints)[None]
    counted &= drawn.valid[:, None]
    targets = coders.encode_points(poses[..., :2], frames)
    return _Crops(frames, jnp.where(counted[..., None], targets, 0), counted)


def _errors_of(
    stage: int, n_joints: int, options: LossOptions
) -> tuple[Float[Array, "j 2"], Float[Array, "j 2"]]:
    if stage < len(options.errors):
        mean, std = (jnp.asarray(x, jnp.float32) for x in options.errors[stage])
        if mean.shape != (n_joints, 2) or std.shape != (n_joints, 2):
            raise ValueError(f"errors must be of {n_joints} joints. Got {options.errors[stage]}")
        return mean, std
    return jnp.zeros((n_joints, 2)), jnp.full((n_joints, 2), options.spread)


def predict(
    model: DeepPose,
    variables: Any,
    images: Images,
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
) -> Poses:
    """Finds the joints of objects whose boxes are known.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      images: Pictures on a canvas.
      boxes: Of the objects, xyxy pixels of the canvas.
      valid: False rows are padding.

    Returns:
      Joints in pixels of the canvas, not clipped; 0 for padding.

    Source:
      Toshev & Szegedy 2014 (arXiv:1312.4659v3), eqs. 4 to 6.
    """

    def run(bound: DeepPose) -> Float[Array, "b n s j 2"]:
        pixels = bound.pixels(images)
        frames = bound.first_frames(boxes)
        joints = coders.decode_points(bound.regress(0, pixels, frames, train=False), frames)
        found = [joints]
        for stage in range(1, len(bound.stages)):
            seen = jnp.concatenate([joints, jnp.ones_like(joints[..., :1])], axis=-1)
            frames = bound.joint_frames(joints, diameters(seen, boxes, bound.torso))
            flat = frames.reshape(frames.shape[0], -1, 4)
            codes = bound.regress(stage, pixels, flat, train=False)
            codes = codes.reshape(*joints.shape[:2], *codes.shape[-2:-1], *codes.shape[-2:])
            own = jnp.diagonal(codes, axis1=2, axis2=3)  # [b n 2 j]: of each crop its own joint.
            own = jnp.moveaxis(own, -1, 2)[..., None, :]
            joints = coders.decode_points(own, frames)[..., 0, :]
            found.append(joints)
        return jnp.stack(found, axis=2)

    joints: Any = nn.apply(run, model)(variables)
    return Poses(jnp.where(valid[..., None, None, None], joints, 0), valid)


def trained_by(path: str, *, stages: Sequence[int]) -> bool:
    """Returns whether the parameter at a path such as "stages_0/head/..." is of these stages."""
    return path.startswith(tuple(f"stages_{stage}/" for stage in stages))
