"""OverFeat: a classifier of windows that looks everywhere, and a regressor of boxes beside it.

b n h w  images in a batch, objects of an image, height and width of a map of windows.
k        classes, background (0) included.    j  boxes of a window: one a class, or 1.
m        windows of an image in a training step, or of all scales.

    training:   windows -> crops -> features -> classifier, box regressor
    detecting:  picture at each scale -> features -> both, slid over the map -> greedy merging

Dense layers are trained on crops of one size, and slide over whole pictures as convolutions. A
window's box is regressed from the same features as its class, as two corners in the window's frame.

Source:
  Sermanet et al. 2014 (arXiv:1312.6229v4).

Departures:
  Windows are labelled by their IoU with objects, so that each scale answers for objects of its
  size, and an object more than three times as long as wide for none: windows around it are taken
  for background. The paper asks for half of the object in view; a classifier trained so on the
  `full` scenes found less (AP50 0.07, not 0.30; one run). No window is left out between objects and
  background: of those, detecting would hear what was never taught (AP50 0.23, not 0.32, where
  windows of IoU 0.2 to 0.3 were; one run). Half of the windows are anywhere, which takes the place
  of the paper's collected negatives. The sum of class scores that a merged box ends up with, s, is
  given as s / (1/2 + s): 0 to 1, and 1/2, from where on detections are drawn, where one window was
  half sure.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.features import dense, norm, overfeat
from jaxdet.features.conv import flatten
from jaxdet.geometry import box_merging, coders, receptive_field
from jaxdet.geometry import boxes as box_ops
from jaxdet.image.crops import crop_resized
from jaxdet.losses import classification
from jaxdet.losses.classification import Term
from jaxdet.structures import Batch, Detections, Images, Instances
from jaxdet.targets import matching, window_sampling
from jaxdet.training import steps
from jaxdet.training.steps import Aux


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An OverFeat in numbers that JSON can hold."""

    design: Literal["fast", "accurate", "small"] = "accurate"
    """The paper's two, or `overfeat.SMALL`."""
    dropout: float = 0.5
    """Of the classifier's hidden layers."""
    box_hidden: tuple[int, ...] = (4096, 1024)
    """Widths of the box regressor's hidden layers."""
    class_agnostic: bool = False
    """Whether all classes share one box."""


DESIGNS = {"fast": overfeat.FAST, "accurate": overfeat.ACCURATE, "small": overfeat.SMALL}


class LossOptions(NamedTuple):
    """What a training step looks at."""

    train_classifier: bool = True  # Features and classifier; off, they stay as they are.
    train_boxes: bool = True  # The box regressor, which never changes the features.
    sample_size: int = 8  # Windows of an image, half of them around objects.
    positive_iou: float = 0.3  # From here on a window is of the object's class.
    negative_iou: float = 0.3  # Below it, of background; between, it is left out.
    object_sides: tuple[float, float] = (0.5, 1.0)  # Of an object's longer side to its window's.
    window_sides: tuple[float, float] = (28.0, 120.0)  # Of windows that are anywhere, pixels.


class DetectOptions(NamedTuple):
    """Where to look, and what becomes a detection."""

    scales: tuple[float, ...] = (0.5, 0.71, 1.0, 1.41)  # Of the picture, relative to the canvas.
    fine: bool = True  # Whether the last pooling is done at all offsets.
    score_threshold: float = 0.5  # Windows less sure of a class say nothing of it, 0 to 1.
    merge_threshold: float = 0.8  # Of `box_merging.match_scores`; negative: nothing is merged.
    max_candidates: int = 200  # Of an image: the surest pairs of window and class.
    max_detections: int = 50  # Of an image.
    middle: bool = False  # Whether the window nearest to a picture's middle is looked at alone.


class OverFeat(nn.Module):
    """The parameters; `loss` and `detect` put them together."""

    design: overfeat.Design
    num_classes: int
    """Of objects; background is one more."""
    box_hidden: tuple[int, ...] = (4096, 1024)
    class_agnostic: bool = False
    dropout: float = 0.5
    axis_name: str | None = None
    pixel_mean: tuple[float, float, float] = norm.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = norm.IMAGENET_STD
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        self.network = overfeat.OverFeat(
            self.design, self.num_classes + 1, self.dropout, self.axis_name, self.dtype
        )
        self.regressor = dense.DenseStack((*self.box_hidden, 4 * self.n_boxes), dtype=self.dtype)

    @property
    def n_boxes(self) -> int:
        """Boxes of a window."""
        return 1 if self.class_agnostic else self.num_classes

    def __call__(self, images: Images) -> tuple[Float[Array, "b k"], Float[Array, "b j 4"]]:
        """Looks at the picture as one window, for `init`."""
        boxes = box_ops.frames(images.sizes)[:, None]
        logits, codes = self.crops(self.pixels(images), boxes, train=False)
        return logits[:, 0], codes[:, 0]

    def pixels(self, images: Images) -> Float[Array, "b h w 3"]:
        """Returns normalized pixels."""
        return norm.normalized(images, mean=self.pixel_mean, std=self.pixel_std)

    def maps(
        self, pixels: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b h2 w2 c"]:
        """Returns the features before the last pooling."""
        return self.network(pixels, norm.whole(pixels), train=train)[-1]

    def crops(
        self,
        pixels: Float[Array, "b h w 3"],
        windows: Float[Array, "b m 4"],
        *,
        train: bool,
        keys: Any = None,
    ) -> tuple[Float[Array, "b m k"], Float[Array, "b m j 4"]]:
        """Returns logits and corners in the windows' frames, of windows cut out one by one."""
        size = self.design.size
        cut = functools.partial(crop_resized, size=size)
        pieces = jax.vmap(cut)(pixels, windows).reshape(-1, size, size, 3)
        keys = None if keys is None else keys.reshape(-1)
        vectors = flatten(overfeat.pooled(self.maps(pieces, train=train), self.design))
        logits = self.network.classifier(vectors, train=train, keys=keys)
        codes = self.regressor(jax.lax.stop_gradient(vectors), train=train)
        shape = windows.shape[:2]
        return logits.reshape(*shape, -1), codes.reshape(*shape, self.n_boxes, 4)


def build(
    num_classes: int,
    architecture: Architecture = Architecture(),
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> OverFeat:
    """Returns the network.

    Args:
      num_classes: Of objects; background is one more.
      architecture: Its numbers.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers; boxes and losses are float32 always.
    """
    spec = architecture
    return OverFeat(
        DESIGNS[spec.design],
        num_classes,
        spec.box_hidden,
        spec.class_agnostic,
        spec.dropout,
        axis_name,
        dtype=dtype,
    )


def loss(
    model: OverFeat,
    variables: Any,
    batch: Batch,
    *,
    train: bool,
    options: LossOptions = LossOptions(),
) -> tuple[dict[str, Term], Aux]:
    """Returns the losses of windows of a batch.

    Args:
      model: The architecture.
      variables: Its parameters.
      batch: With keys, one an image.
      train: Whether there is dropout, and batch norm normalizes by the batch's statistics.
      options: What is sampled.

    Returns:
      (sum, count) of `class` over windows and of `box`, the squared errors of corners in window
      sides, over windows of objects; and `Aux`, whose metric is the share of windows of objects
      that get their class.

    Source:
      Sermanet et al. 2014 (arXiv:1312.6229v4), sections 3.1 and 4.2.
    """
    run = functools.partial(_loss, batch=batch, train=train, options=options)
    return steps.bound_loss(run, model, variables, train=train)


def _loss(
    model: OverFeat, *, batch: Batch, train: bool, options: LossOptions
) -> tuple[dict[str, Term], dict[str, Term]]:
    if batch.keys is None:
        raise ValueError("`batch.keys` is None: training samples windows, so each image needs one.")
    if not (options.train_classifier or options.train_boxes):
        raise ValueError(f"train_classifier or train_boxes must be on. Got {options}")
    keys = jax.vmap(jax.random.split)(batch.keys)
    sample = functools.partial(
        window_sampling.sample_windows,
        n=options.sample_size,
        object_sides=options.object_sides,
        window_sides=options.window_sides,
    )
    truth = batch.instances
    windows = jax.vmap(sample)(keys[:, 0], truth.boxes, truth.objects, batch.images.sizes)
    matches = jax.vmap(functools.partial(_label, options=options))(windows, batch.instances)
    each = jax.vmap(functools.partial(jax.random.split, num=options.sample_size))(keys[:, 1])
    # What is not trained stays as it is when it predicts.
    learns = train and options.train_classifier
    logits, codes = model.crops(model.pixels(batch.images), windows, train=learns, keys=each)

    real = (batch.records >= 0)[:, None]  # A picture that only fills the batch must not count.
    positive, known = matches.positive & real, (matches.positive | matches.negative) & real
    take = jax.vmap(lambda rows, index: rows[index])
    labels = jnp.where(positive, take(batch.instances.labels, matches.index), 0)
    corners = take(batch.instances.boxes, matches.index).reshape(*windows.shape[:2], 2, 2)
    targets = coders.encode_points(corners, windows).reshape(windows.shape)
    column = jnp.zeros_like(labels) if model.class_agnostic else jnp.maximum(labels - 1, 0)
    own = jnp.take_along_axis(codes, column[..., None, None], axis=2)[:, :, 0]
    terms = {}
    if options.train_classifier:
        entropy = classification.softmax_cross_entropy(logits, labels)
        terms["class"] = classification.weighted_sum(entropy, known)
    if options.train_boxes:
        squares = jnp.sum((own - jnp.where(positive[..., None], targets, 0)) ** 2, axis=-1)
        terms["box"] = classification.weighted_sum(squares, positive)
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return terms, {"window_accuracy": classification.weighted_sum(hits, positive)}


def _label(
    windows: Float[Array, "m 4"], truth: Instances, *, options: LossOptions
) -> matching.Matches:
    matches = matching.match_boxes(
        truth.boxes,
        truth.objects,
        windows,
        positive_iou=options.positive_iou,
        negative_iou=options.negative_iou,
        keep_best=False,
    )
    return matching.ignore_regions(
        matches, windows, truth.boxes, truth.regions, iou=options.negative_iou
    )


class Windows(NamedTuple):
    """What is said of every window of a batch at one scale."""

    scores: Float[Array, "b h w k"]  # Probabilities of classes.
    boxes: Float[Array, "b h w j 4"]  # xyxy pixels of the canvas, not clipped.
    windows: Float[Array, "h w 4"]  # xyxy pixels of the canvas.


def look(model: OverFeat, variables: Any, images: Images, *, scale: float, fine: bool) -> Windows:
    """Classifies every window of pictures at one scale, and says where its object is.

    Args:
      model: The architecture.
      variables: Its parameters.
      images: Pictures on a canvas.
      scale: Of the pictures; what is smaller than a window then is filled up with the mean colour.
      fine: Whether the last pooling is done at all offsets.

    Source:
      Sermanet et al. 2014 (arXiv:1312.6229v4), sections 3.3 to 3.5 and 4.1.
    """
    design, parameters = model.design, variables["params"]
    pixels: Any = model.apply(variables, images, method=OverFeat.pixels)
    batch, *canvas = pixels.shape[:3]
    size = [max(1, round(side * scale)) for side in canvas]
    scaled = jax.image.resize(pixels, (batch, *size, 3), "linear", antialias=True)
    missing = [(0, max(0, design.size - side)) for side in size]
    scaled = jnp.pad(scaled, ((0, 0), *missing, (0, 0)))
    maps: Any = model.apply(variables, scaled, method=OverFeat.maps)

    def slide(stack: dict[str, dense.Layer]) -> Array:
        return overfeat.slide(maps, dense.layers_of(stack), design, fine=fine)

    logits = slide(parameters["network"]["classifier"])
    codes = slide(parameters["regressor"])
    rows, columns = logits.shape[1:3]
    x, y = jnp.meshgrid(jnp.arange(columns), jnp.arange(rows))
    cells = jnp.stack([x, y, x + 1, y + 1], axis=-1)
    windows = receptive_field.seen(overfeat.window_field(design, fine=fine), cells)
    grown = jnp.array([canvas[1] / size[1], canvas[0] / size[0]] * 2, jnp.float32)
    windows = windows * grown.reshape(1, 1, 4)
    corners = codes.reshape(*codes.shape[:3], 2 * model.n_boxes, 2)
    corners = coders.decode_points(corners, jnp.broadcast_to(windows, (batch, *windows.shape)))
    corners = corners.reshape(*codes.shape[:3], model.n_boxes, 2, 2)
    boxes = jnp.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)
    return Windows(jax.nn.softmax(logits), boxes, windows)


def detect(
    model: OverFeat,
    variables: Any,
    images: Images,
    *,
    options: DetectOptions = DetectOptions(),
) -> Detections:
    """Finds the objects in images.

    Args:
      model: The architecture.
      variables: Its parameters.
      images: Pictures on a canvas.
      options: Scales, thresholds and sizes.

    Returns:
      Boxes in pixels of the canvas, best first.

    Source:
      Sermanet et al. 2014 (arXiv:1312.6229v4), section 4.3.

    Departures:
      What is merged are the boxes of the surest windows and classes of all scales, above a
      threshold; in the paper, those of the best classes of each scale.
    """
    seen = [
        look(model, variables, images, scale=scale, fine=options.fine) for scale in options.scales
    ]
    n_images, n_classes = images.sizes.shape[0], model.num_classes
    scores = jnp.concatenate([x.scores.reshape(n_images, -1, n_classes + 1) for x in seen], axis=1)
    boxes = jnp.concatenate([x.boxes.reshape(n_images, -1, model.n_boxes, 4) for x in seen], axis=1)
    windows = jnp.concatenate([x.windows.reshape(-1, 4) for x in seen])
    where = _middle if options.middle else _inside
    inside = jax.vmap(functools.partial(where, windows))(images.sizes)
    return jax.vmap(functools.partial(_merge, options=options))(scores, boxes, inside, images.sizes)


def _inside(windows: Float[Array, "m 4"], size: Int[Array, "2"]) -> Bool[Array, " m"]:
    """Whether half of a window is picture, or half of the picture in it."""
    least = jnp.minimum(box_ops.area(windows), size[0] * size[1])
    return 2 * box_ops.area(box_ops.clip(windows, size)) >= least


def _middle(windows: Float[Array, "m 4"], size: Int[Array, "2"]) -> Bool[Array, " m"]:
    """Which window is nearest to the picture's middle; the first one of them."""
    centers, _ = box_ops.centers_and_sizes(windows)
    away = jnp.sum((centers - size[None, ::-1] / 2) ** 2, axis=-1)
    return jnp.arange(len(windows)) == jnp.argmin(away)


def _merge(
    scores: Float[Array, "m k"],
    boxes: Float[Array, "m j 4"],
    inside: Bool[Array, " m"],
    size: Int[Array, "2"],
    *,
    options: DetectOptions,
) -> Detections:
    """Merges the boxes of the surest windows of one image."""
    m, n_classes = scores.shape[0], scores.shape[1] - 1
    eligible = jnp.where(inside[:, None], scores[:, 1:], -1).reshape(-1)
    top, index = jax.lax.top_k(eligible, min(options.max_candidates, m * n_classes))
    window, column = jnp.divmod(index, n_classes)
    candidates = boxes[window, column if boxes.shape[1] > 1 else jnp.zeros_like(column)]
    candidates = box_ops.clip(candidates, size)
    merged = box_merging.merge_boxes(
        candidates,
        top,
        (column + 1).astype(jnp.int32),
        (top >= options.score_threshold) & (top >= 0) & (box_ops.area(candidates) > 0),
        threshold=options.merge_threshold,
        max_outputs=options.max_detections,
    )
    return Detections(
        merged.boxes, merged.scores / (0.5 + merged.scores), merged.groups, merged.valid
    )


def is_trainable(path: str, *, options: LossOptions) -> bool:
    """Returns whether the parameter at a path such as "regressor/0/kernel" is trained."""
    return options.train_boxes if path.startswith("regressor/") else options.train_classifier
