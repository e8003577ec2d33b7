"""Trained classifiers, ours or torchvision's, as beginnings of other systems."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.features import mobilenet, networks
from jaxdet.features.networks import Network
from jaxdet.systems.architectures import Architecture
from jaxdet.training import checkpoints
from jaxdet.weights import (
    description,
    detectors,
    download,
    families,
    files,
    published,
    torchvision,
)
from jaxdet.weights.description import Description
from jaxdet.weights.tensor_pickle import WeightsError

IMAGENET_CLASSES = 1000


class Pretrained(NamedTuple):
    """A network and its variables."""

    network: Network
    variables: Any
    classes: tuple[str, ...]  # Of the last layer; () where no file names them.


def load(
    weights: str | pathlib.Path,
    *,
    network: Network = Network(),
    progress: Callable[[int, int | None], Any] | None = None,
) -> Pretrained:
    """Opens a classifier.

    Args:
      weights: A run that trained a classifier or a localizer of one box, or one of its
        checkpoints; the name of a published classifier; or a file: `.pth`, `.pt` or
        `.safetensors`.
      network: Of a file that is not a published one, nor says it, nor shows it as ResNets and
        MobileNets do; its `dropout` holds for all.
      progress: Of a download; see `download.fetch`.

    Raises:
      ValueError: Where there is nothing of this name, or it is of another network; the message
        says which tensors do not fit.
    """
    path = pathlib.Path(weights)
    if path.is_dir():
        variables, metadata = checkpoints.load_variables(path)
        found = description.from_metadata(metadata)
        return _inner(path, found, variables, dropout=network.dropout)
    key = published.of_file(path.name)
    if path.suffix not in files.SUFFIXES:
        name = str(weights).partition(":")[0]
        if name not in networks.PUBLISHED:
            raise ValueError(
                f"{weights}: is no folder, and no published classifier; there are "
                f"{', '.join(networks.PUBLISHED)}."
            )
        key = published.full_name(str(weights))
        path = download.fetch(published.url(str(weights)), progress=progress)
    state_dict, texts = files.read(path)
    if (found := description.from_texts(texts)) is not None:
        shapes = detectors.variable_shapes(len(found.classes), found.architecture)
        variables = torchvision.from_state_dict(state_dict, shapes)
        return _inner(path, found, variables, dropout=network.dropout)
    try:
        known = networks.PUBLISHED.get((key or "").partition(":")[0]) or _shown(state_dict)
        network = dataclasses.replace(known or network, dropout=network.dropout)
        last = ".".join((*network.last_layer, "bias"))
        kept = {k: x for k, x in state_dict.items() if not k.startswith(("aux1.", "aux2."))}
        count = len(kept[last]) if last in kept else IMAGENET_CLASSES
        inner = torchvision.from_state_dict(kept, _variable_shapes(network, count))
    except ValueError as fault:
        raise WeightsError(f"{path}: {fault}") from fault
    return Pretrained(network, {k: {"network": tree} for k, tree in inner.items()}, ())


def _shown(state_dict: Mapping[str, np.ndarray]) -> Network | None:
    """The network that tensors are of, as far as they tell."""
    found = torchvision.tidy(state_dict)
    for last, size in (("16", "large"), ("12", "small")):
        if f"features.{last}.0.weight" in found:
            return networks.PUBLISHED[f"mobilenet_v3_{size}"]
    depth, blocks = families.resnet(found)
    none = np.zeros(())
    stem, grouped = (found.get(name, none) for name in ("conv1.weight", "layer1.0.conv2.weight"))
    if depth is None or any(x.ndim != 4 or not x.size for x in (stem, grouped)):
        return None
    return Network(
        depth=depth,
        width=len(stem),
        n_stages=len(blocks),
        groups=grouped.shape[0] // grouped.shape[1],
        width_per_group=grouped.shape[1] * 64 // len(stem),
        norm="batch" if "bn1.running_mean" in found else "group",
    )


def _inner(
    path: pathlib.Path, found: Description, variables: Any, *, dropout: float | None
) -> Pretrained:
    """The classifier in a system of ours."""
    own = getattr(found.architecture, "network", found.architecture)
    if not isinstance(own, Network) or getattr(found.architecture, "n_boxes", 1) != 1:
        raise ValueError(f"{path}: {found.architecture} is no classifier of pictures.")
    inner = {k: {"network": tree["network"]} for k, tree in variables.items() if tree}
    return Pretrained(dataclasses.replace(own, dropout=dropout), inner, found.classes)


def _variable_shapes(network: Network, num_classes: int) -> Any:
    model = networks.build(network, num_classes=num_classes)
    init = functools.partial(model.init, train=False, method="logits")
    return jax.eval_shape(
        init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )


def begin_with(fresh: Any, pretrained: Pretrained, *, new_head: bool) -> Any:
    """Returns just drawn variables with a trained network in their place.

    Args:
      fresh: Of a system whose network is called `network`: a classifier, a localizer.
      pretrained: Of the same network, for the same classes unless the head is new.
      new_head: Whether the last layer stays as it was drawn, for other classes.
    """
    filled = dict(fresh)
    for collection, tree in pretrained.variables.items():
        network = tree["network"]
        if new_head and collection == "params":
            network = _grafted(network, fresh["params"]["network"], pretrained.network.last_layer)
        filled[collection] = {**fresh.get(collection, {}), "network": network}
    return filled


def as_backbone(network: Network, architecture: Architecture) -> Architecture:
    """Returns a detector's numbers with a classifier's network for its backbone.

    Args:
      network: Of the classifier.
      architecture: All other numbers.

    Raises:
      ValueError: Where no detector has such a backbone, where norms are of another kind, and where
        stages that the classifier lacks would be frozen as they are drawn.

    Departures:
      A MobileNet's norms keep their epsilon of 1e-3, and so its maps are the classifier's;
      torchvision's detectors have 1e-5.
    """
    if (network.norm == "group") != (architecture.norm == "group"):
        kinds = "group" if network.norm == "group" else "batch or frozen"
        raise ValueError(
            f"the architecture's norm must be {kinds}, as the classifier's. Got {architecture.norm}"
        )
    if network.family == "mobilenet_v3_large":
        return dataclasses.replace(
            architecture, backbone="mobilenet_v3_large", norm_epsilon=mobilenet.EPSILON
        )
    if network.family != "resnet" or (network.groups, network.width_per_group) != (1, 64):
        raise ValueError(
            f"a backbone is a ResNet (18, 34, 50, 101, 152) or a mobilenet_v3_large. Got {network}"
        )
    lacks = network.n_stages < architecture.n_stages
    if lacks and (architecture.norm == "frozen" or architecture.n_frozen > 1 + network.n_stages):
        raise ValueError(
            f"the classifier has {network.n_stages} of {architecture.n_stages} stages: the others "
            "cannot be frozen, nor their norms; give the architecture n_frozen of at most "
            f"{1 + network.n_stages} and norm batch"
        )
    return dataclasses.replace(
        architecture, backbone="resnet", depth=network.depth, width=network.width
    )


def begin_backbone_with(fresh: Any, pretrained: Pretrained) -> tuple[Any, str]:
    """Returns a detector's variables with a trained backbone, and a sentence on what it is of.

    Stages that the classifier does not have stay as they are, those that the detector does not
    have are left out, and so are the last layers. Statistics of batch norms are taken whether the
    detector's norms are frozen or not.

    Args:
      fresh: Just drawn variables of a Faster R-CNN, with an architecture of `as_backbone`.
      pretrained: The classifier.

    Raises:
      WeightsError: Names the tensors that do not fit.
    """
    bodies = {name: t["backbone"]["body"] for name, t in fresh.items() if "backbone" in t}
    state_dict = {
        name.removeprefix("features."): x  # As torchvision's MobileNets call them.
        for name, x in torchvision.to_state_dict(pretrained.variables).items()
    }
    parts = {part for body in bodies.values() for part in body}
    known = parts & {name.partition(".")[0] for name in state_dict}
    like = {
        name: {part: x for part, x in body.items() if part in known}
        for name, body in bodies.items()
    }
    kept = {name: x for name, x in state_dict.items() if name.partition(".")[0] in known}
    read = torchvision.from_state_dict(kept, like)
    filled = {
        name: {**t, "backbone": {**t["backbone"], "body": {**bodies[name], **read[name]}}}
        if name in bodies
        else t
        for name, t in fresh.items()
    }
    new = ", ".join(sorted(parts - known))
    text = f"The backbone is trained{f', but for {new}' if new else ''}; all else is new."
    return filled, text


def _grafted(tree: Mapping[str, Any], other: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The tree with the other's branch."""
    name, *rest = path
    branch = _grafted(tree[name], other[name], tuple(rest)) if rest else other[name]
    return {**tree, name: branch}
