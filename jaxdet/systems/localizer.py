"""Classification and localization: a classifier that also says where, by regression.

b   images in a batch.      s   boxes of an image, as many in all images (slots); usually 1.
k   classes; there is no background, so label l is column l - 1.
j   boxes of a slot: one a class, or 1 for all of them.

    images -> maps -> classifier -> logits
                 `--> box head  -> deltas, from the frame of the canvas to the box

Four steps: train a classifier, attach a box head to its maps or to the vector before its last
layer, train the head alone (`LossOptions.train_classifier` off), use both. Or train both at once.

Source:
  OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 4; VGG (Simonyan & Zisserman 2015,
  arXiv:1409.1556v6), appendix A, which compares one box for all classes with one for each.

Departures:
  Boxes are coded as R-CNN codes them, against the canvas, as maps are. There is one scale and one
  view. Several boxes share one picture's features; their number is fixed.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdet.features import conv, networks, norm
from jaxdet.features.activations import relu
from jaxdet.features.fpn import lecun_uniform
from jaxdet.features.networks import Network
from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import coders
from jaxdet.geometry import iou as iou_ops
from jaxdet.losses import classification
from jaxdet.losses.classification import Term
from jaxdet.regions.heads import BoxOutputs
from jaxdet.structures import Batch, Detections, Images, Instances
from jaxdet.systems import classifier
from jaxdet.systems.classifier import DetectOptions, Maps
from jaxdet.targets import assignment
from jaxdet.targets.assignment import Assignment
from jaxdet.training import state
from jaxdet.training.steps import Aux

# 1 / the spread of the codes over pictures of one object, in round numbers: a squared error is then
# worth about as much as a wrong class.
CODE_WEIGHTS = (4.0, 4.0, 2.0, 2.0)


class LossOptions(NamedTuple):
    """What is minimized."""

    train_classifier: bool = True  # Else it stays as it is, statistics and all.
    train_boxes: bool = True  # Else their head stays as it is.
    optimal: bool = False  # Boxes answer for what they fit best; else for objects left to right.
    label_smoothing: float = 0.0  # Share of the target that all classes have alike, 0 to 1.


class AfterConvolutions(nn.Module):
    """Two fully connected layers on the last map: what is in which cell is still known.

    Source:
      OverFeat (Sermanet et al. 2014, arXiv:1312.6229v4), section 4.1.
    """

    features: int = 256
    size: tuple[int, int] = (7, 7)
    """(rows, columns) that maps of any size are averaged to."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, vector: Float[Array, "b d"]) -> Float[Array, "b d2"]:
        """Returns one vector an image; the classifier's own is not read."""
        del vector
        x = conv.flatten(conv.adaptive_avg_pool(maps[-1], self.size))
        return _dense_layers(x, (self.features, self.features), self.dtype)


class AfterVector(nn.Module):
    """One fully connected layer on what the classifier's last layer reads.

    Source:
      DeepPose (Toshev & Szegedy 2014, arXiv:1312.4659v3), section 3.1, regresses from there.
    """

    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, vector: Float[Array, "b d"]) -> Float[Array, "b d2"]:
        """Returns one vector an image; the maps are not read."""
        del maps
        return _dense_layers(vector, (self.features,), self.dtype)


def _dense_layers(x: Array, widths: tuple[int, ...], dtype: Any) -> Array:
    for i, width in enumerate(widths):
        dense = nn.Dense(width, kernel_init=lecun_uniform, dtype=dtype, name=f"fc{i + 1}")
        x = relu(dense(x))
    return x


class Localizer(nn.Module):
    """A classifier with a box head."""

    network: nn.Module
    """As in `Classifier`, with n_boxes * num_classes logits."""
    box_head: nn.Module
    """From maps and vector to one vector an image: `AfterConvolutions` or `AfterVector`."""
    num_classes: int
    n_boxes: int = 1
    class_agnostic: bool = True
    """Whether all classes share the four numbers of a box."""
    pixel_mean: tuple[float, float, float] = norm.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = norm.IMAGENET_STD

    def setup(self) -> None:
        """Makes the last layer of the box head."""
        n_numbers = 4 * self.n_boxes * self._n_boxes_each
        self.box_predictor = nn.Dense(n_numbers, kernel_init=nn.initializers.normal(0.001))

    @property
    def _n_boxes_each(self) -> int:
        return 1 if self.class_agnostic else self.num_classes

    def __call__(self, images: Images) -> BoxOutputs:
        """Returns logits and deltas; for `init`."""
        return self.head(self.maps(images, train=False), train=False)

    def maps(self, images: Images, *, train: bool) -> Maps:
        """Returns the network's maps of normalized images."""
        pixels = norm.normalized(images, mean=self.pixel_mean, std=self.pixel_std)
        return self.network(pixels, images.sizes, train=train)

    def head(self, maps: Maps, *, train: bool) -> BoxOutputs:
        """Returns logits [b s k] and deltas [b s j 4]; with `train`, dropout needs a key."""
        vector, logits = self.network.head(maps, train=train)  # pyright: ignore[reportCallIssue]
        deltas = self.box_predictor(self.box_head(maps, vector)).astype(jnp.float32)
        return BoxOutputs(
            logits.reshape(-1, self.n_boxes, self.num_classes),
            deltas.reshape(-1, self.n_boxes, self._n_boxes_each, 4),
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A localizer, in numbers that JSON can hold."""

    network: Network = Network()
    attached: Literal["convolutions", "vector"] = "convolutions"
    """What the box head reads: the last map, or what the classifier's last layer reads."""
    class_agnostic: bool = True
    """Whether all classes share the four numbers of a box."""
    n_boxes: int = 1
    """As many in all pictures."""
    features: int = 256
    """Width of the box head's layers."""
    map_size: tuple[int, int] = (7, 7)
    """(rows, columns) of the map that the box head reads."""


def build(
    num_classes: int,
    architecture: Architecture = Architecture(),
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Localizer:
    """Returns the network.

    Args:
      num_classes: How many there are.
      architecture: Its numbers.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers; boxes and losses are float32 always.
    """
    spec = architecture
    heads = {
        "convolutions": AfterConvolutions(spec.features, spec.map_size, dtype),
        "vector": AfterVector(spec.features, dtype),
    }
    return Localizer(
        network=networks.build(
            spec.network,
            num_classes=num_classes * spec.n_boxes,
            axis_name=axis_name,
            dtype=dtype,
        ),
        box_head=heads[spec.attached],
        num_classes=num_classes,
        n_boxes=spec.n_boxes,
        class_agnostic=spec.class_agnostic,
    )


def loss(
    model: Localizer,
    variables: Any,
    batch: Batch,
    *,
    train: bool,
    options: LossOptions = LossOptions(),
) -> tuple[dict[str, Term], Aux]:
    """Returns the cross-entropy and the squared error of a batch.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      batch: Pictures with as many objects as the model has boxes; those too many are left out.
        Networks with dropout need keys to train with.
      train: Whether there is dropout, and norms use (and move) the statistics of the batch.
      options: What is minimized.

    Returns:
      (sum, count) of `class` and `box`, where they are trained, the counts those of objects, and
      `Aux`, whose metrics are the share of objects whose class is the likeliest (`accuracy`) and
      the mean IoU of the boxes of their classes (`iou`).
    """
    outputs, stats = classifier.run(
        model,
        state.held(variables, functools.partial(is_trainable, options=options)),
        batch.images,
        keys=batch.keys,
        train=train and options.train_classifier,
    )
    objects = batch.instances.objects & (batch.records >= 0)[:, None]
    truth = batch.instances._replace(valid=objects, masks=None, keypoints=None)

    def one(outputs: BoxOutputs, truth: Instances, frame: Array) -> tuple[Any, Any]:
        return _image_loss(outputs, truth, frame, options=options)

    terms, metrics = jax.vmap(one)(outputs, truth, _frames(batch.images))
    trained = {"class": options.train_classifier, "box": options.train_boxes}
    terms, metrics = jax.tree.map(jnp.sum, (terms, metrics))
    return {name: terms[name] for name, used in trained.items() if used}, Aux(metrics, stats)


def _image_loss(
    outputs: BoxOutputs, truth: Instances, frame: Float[Array, " 4"], *, options: LossOptions
) -> tuple[dict[str, Term], dict[str, Term]]:
    """Of each object, what the box that answers for it has to say."""
    n_slots, n_objects = outputs.logits.shape[0], truth.labels.shape[0]
    labels = jnp.maximum(truth.labels - 1, 0)
    targets = coders.encode_boxes(
        truth.boxes, jnp.broadcast_to(frame, truth.boxes.shape), weights=CODE_WEIGHTS
    )

    # Of all pairs of object and slot.
    def pair(label: Array, target: Array, logits: Array, deltas: Array) -> tuple[Array, ...]:
        smooth = optax.smooth_labels(
            jax.nn.one_hot(label, logits.shape[-1]), options.label_smoothing
        )
        own = deltas[jnp.minimum(label, deltas.shape[0] - 1)]
        error = jnp.sum(optax.losses.squared_error(own, target))
        return optax.losses.softmax_cross_entropy(logits, smooth), error, own

    of_slots = jax.vmap(pair, in_axes=(None, None, 0, 0))
    entropy, error, deltas = jax.vmap(of_slots, in_axes=(0, 0, None, None))(
        labels, targets, *outputs
    )
    if options.optimal:
        slots = assignment.assign(entropy + error, truth.valid, jnp.ones(n_slots, bool))
    else:
        middles, _ = box_ops.centers_and_sizes(truth.boxes)
        order = jnp.argsort(jnp.argsort(jnp.where(truth.valid, middles[:, 0], jnp.inf)))
        slots = Assignment(jnp.clip(order, 0, n_slots - 1), truth.valid & (order < n_slots))

    def chosen(x: Array) -> Array:
        return x[jnp.arange(n_objects), slots.index]

    terms = {
        "class": classification.weighted_sum(chosen(entropy), slots.valid),
        "box": classification.weighted_sum(chosen(error), slots.valid),
    }
    likeliest = jnp.argmax(outputs.logits, axis=-1)[slots.index]
    boxes = _decode(chosen(deltas), frame)
    metrics = {
        "accuracy": classification.weighted_sum(
            (likeliest == labels).astype(jnp.float32), slots.valid
        ),
        "iou": classification.weighted_sum(iou_ops.iou(boxes, truth.boxes), slots.valid),
    }
    return terms, metrics


def detect(
    model: Localizer,
    variables: Any,
    images: Images,
    *,
    options: DetectOptions = DetectOptions(),
) -> Detections:
    """Says what is in images, and where.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      images: Pictures on a canvas.
      options: How many guesses.

    Returns:
      The likeliest pairs of box and class, best first; boxes are cut at the picture's border.
    """
    outputs, _ = classifier.run(model, variables, images, keys=None, train=False)
    deltas = jnp.broadcast_to(outputs.deltas, (*outputs.logits.shape, 4))
    boxes = jax.vmap(_decode)(deltas, _frames(images))
    inside = jax.vmap(box_ops.clip)(boxes, images.sizes)
    return classifier.guesses(jax.nn.softmax(outputs.logits), inside, options=options)


def _frames(images: Images) -> Float[Array, "b 4"]:
    """What codes are relative to: whole canvases, as the maps that they are read from."""
    batch, *canvas = images.pixels.shape[:3]
    return jnp.broadcast_to(box_ops.frames(jnp.array([canvas])), (batch, 4))


def _decode(deltas: Float[Array, "*n 4"], frame: Float[Array, " 4"]) -> Float[Array, "*n 4"]:
    return coders.decode_boxes(deltas, jnp.broadcast_to(frame, deltas.shape), weights=CODE_WEIGHTS)


def is_trainable(path: str, *, options: LossOptions) -> bool:
    """Returns whether the parameter at a path such as "box_head/fc1/kernel" is trained."""
    return options.train_classifier if path.startswith("network/") else options.train_boxes
