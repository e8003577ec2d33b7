"""Classification of whole pictures, from which localization and R-CNN begin.

b k  images in a batch, classes; there is no background, so label l is column l - 1.

    images -> maps -> head -> vector -> logits
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdet.features import networks, norm
from jaxdet.features.networks import Network
from jaxdet.geometry import boxes as box_ops
from jaxdet.losses import classification
from jaxdet.losses.classification import Term
from jaxdet.metrics import localization
from jaxdet.structures import Batch, Detections, Images
from jaxdet.training import state
from jaxdet.training.steps import Aux

Maps = tuple[Float[Array, "b _ _ _"], ...]


class LossOptions(NamedTuple):
    """What is minimized."""

    head_only: bool = False  # All but the last layer stays as it is, statistics and all.
    label_smoothing: float = 0.0  # Share of the target that all classes have alike, 0 to 1.


class DetectOptions(NamedTuple):
    """Which guesses become detections."""

    n_guesses: int = localization.N_GUESSES  # Of an image, the likeliest.
    score_threshold: float = 0.0  # Less likely ones are left out, 0 to 1.


class Classifier(nn.Module):
    """A network of `features` with its classifier, and what pictures it was made for."""

    network: nn.Module
    last_layer: tuple[str, ...] = ("fc",)
    """Where the network's parameters are that know the classes."""
    pixel_mean: tuple[float, float, float] = norm.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = norm.IMAGENET_STD

    def __call__(self, images: Images) -> Float[Array, "b k"]:
        """Returns logits; for `init`, and for whoever wants nothing else."""
        return self.head(self.maps(images, train=False), train=False)

    def maps(self, images: Images, *, train: bool) -> Maps:
        """Returns the network's maps of normalized images."""
        pixels = norm.normalized(images, mean=self.pixel_mean, std=self.pixel_std)
        return self.network(pixels, images.sizes, train=train)

    def head(self, maps: Maps, *, train: bool) -> Float[Array, "b k"]:
        """Returns logits; with `train`, dropout needs a key of that name."""
        return self.network.head(maps, train=train)[1]  # pyright: ignore[reportCallIssue]


def build(
    num_classes: int,
    network: Network,
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Classifier:
    """Returns the classifier of a network.

    Args:
      num_classes: How many there are.
      network: Its numbers.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers; logits and losses are float32 always.
    """
    return Classifier(
        networks.build(network, num_classes=num_classes, axis_name=axis_name, dtype=dtype),
        last_layer=network.last_layer,
    )


def loss(
    model: Classifier,
    variables: Any,
    batch: Batch,
    *,
    train: bool,
    options: LossOptions = LossOptions(),
) -> tuple[dict[str, Term], Aux]:
    """Returns the cross-entropy of a batch.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      batch: The first object of a picture that counts gives its class; pictures without one are
        left out. Networks with dropout need keys to train with.
      train: Whether there is dropout, and norms use (and move) the statistics of the batch.
      options: What is minimized.

    Returns:
      (sum, count) of `class`, the count that of pictures, and `Aux`, whose metrics are the shares
      of pictures of which an object's class is the likeliest (`top1`) or among the five likeliest
      (`top5`), as in `metrics.localization`.

    Source:
      Krizhevsky et al. 2012 (Advances in Neural Information Processing Systems 25), section 2,
      has the two rates; label smoothing is Szegedy et al. 2015 (arXiv:1512.00567v3), section 7.
    """
    trainable = functools.partial(is_trainable, last_layer=model.last_layer, options=options)
    logits, stats = run(
        model,
        state.held(variables, trainable),
        batch.images,
        keys=batch.keys,
        train=train and not options.head_only,
    )
    objects = batch.instances.objects & (batch.records >= 0)[:, None]
    first = jnp.argmax(objects, axis=1)
    labels = jnp.take_along_axis(batch.instances.labels, first[:, None], axis=1)[:, 0] - 1
    labelled = jnp.any(objects, axis=1)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), options.label_smoothing)
    entropy = optax.losses.softmax_cross_entropy(logits, targets)
    metrics = {}
    each = jnp.repeat(logits[:, None], objects.shape[1], axis=1)
    for n in (1, 5):
        among = localization.among_top(each, batch.instances.labels - 1, n)
        hits = jnp.any(among & objects, axis=1).astype(jnp.float32)
        metrics[f"top{n}"] = classification.weighted_sum(hits, labelled)
    return {"class": classification.weighted_sum(entropy, labelled)}, Aux(metrics, stats)


def detect(
    model: Classifier,
    variables: Any,
    images: Images,
    *,
    options: DetectOptions = DetectOptions(),
) -> Detections:
    """Says what images show.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      images: Pictures on a canvas.
      options: How many guesses.

    Returns:
      The likeliest classes, best first, each with the box of the whole picture; scores are
      probabilities.
    """
    logits, _ = run(model, variables, images, keys=None, train=False)
    boxes = box_ops.frames(images.sizes)[:, None, None]
    boxes = jnp.broadcast_to(boxes, (*logits[:, None].shape, 4))
    return guesses(jax.nn.softmax(logits[:, None]), boxes, options=options)


def guesses(
    scores: Float[Array, "b s k"], boxes: Float[Array, "b s k 4"], *, options: DetectOptions
) -> Detections:
    """Returns the best pairs of box and class of each image.

    Args:
      scores: Of each box and class, 0 to 1.
      boxes: Inside the picture; those without area are left out.
      options: How many guesses.
    """
    n_classes = scores.shape[-1]

    def one(scores: Array, boxes: Array) -> Detections:
        likely = (box_ops.area(boxes) > 0) & (scores >= options.score_threshold)
        eligible = jnp.where(likely, scores, -1).reshape(-1)
        top, rows = jax.lax.top_k(eligible, min(options.n_guesses, eligible.size))
        valid, labels = top >= 0, (rows % n_classes + 1).astype(jnp.int32)
        return Detections(
            boxes=jnp.where(valid[:, None], boxes.reshape(-1, 4)[rows], 0),
            scores=jnp.where(valid, top, 0),
            labels=jnp.where(valid, labels, 0),
            valid=valid,
        )

    return jax.vmap(one)(scores, boxes)


def run(
    model: Any,
    variables: Any,
    images: Images,
    *,
    keys: Any,
    train: bool,
) -> tuple[Any, Any]:
    """Applies a system of two parts, `maps` of images and a `head` of maps, without side effects.

    The head sees one image at a time, so that dropout belongs to the image.

    Args:
      model: The architecture.
      variables: Its parameters and statistics.
      images: Pictures on a canvas.
      keys: Of dropout, one an image; without `train`, none are needed.
      train: Whether there is dropout, and norms use (and move) the statistics of the batch.

    Returns:
      What the head returns, and the statistics after this batch.
    """
    mutable = ["batch_stats"] if train else []
    maps, updates = model.apply(variables, images, train=train, method="maps", mutable=mutable)
    stats = updates.get("batch_stats", variables.get("batch_stats", {}))
    if not train or keys is None:
        return model.apply(variables, maps, train=False, method="head"), stats

    def one(maps: Any, key: Any) -> Any:
        alone = jax.tree.map(lambda x: x[None], maps)
        found = model.apply(variables, alone, train=True, rngs={"dropout": key}, method="head")
        return jax.tree.map(lambda x: x[0], found)

    return jax.vmap(one)(maps, keys), stats


def is_trainable(path: str, *, last_layer: tuple[str, ...], options: LossOptions) -> bool:
    """Returns whether the parameter at a path such as "network/fc/kernel" is trained.

    Args:
      path: Of the parameter.
      last_layer: That of the model.
      options: What is minimized.
    """
    return not options.head_only or path.startswith("/".join(("network", *last_layer, "")))
