"""Classifiers' networks as numbers that JSON can hold, and what those stand for."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxdet.features import alexnet, googlenet, mobilenet, norm, resnet, vgg


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, in numbers that JSON can hold.

    The defaults are torchvision's `resnet18`.
    """

    family: Literal[
        "resnet", "alexnet", "vgg", "googlenet", "mobilenet_v3_large", "mobilenet_v3_small"
    ] = "resnet"
    depth: Literal[11, 13, 16, 18, 19, 34, 50, 101, 152] = 18
    """Layers, of a ResNet or a VGG."""
    width: int = 64
    """Channels of a ResNet's first stage."""
    n_stages: int = 4
    """Of a ResNet, 1 to 4; the last has stride 2^(n_stages + 1)."""
    groups: int = 1
    """Of a ResNet's 3x3 convolutions."""
    width_per_group: int = 64
    """Channels of such a group, in the first stage."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Batch norm synchronized over devices, or group norm; none is for VGGs. AlexNets have none."""
    transform_input: bool = False
    """Of a GoogLeNet: see there; its published weights want it."""
    dropout: float | None = None
    """Of the classifier's hidden layers; the family's own if None. ResNets have none."""

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Where the parameters of the last layer are, the one that knows the classes."""
        return {
            "alexnet": ("classifier", "6"),
            "vgg": ("classifier", "6"),
            "mobilenet_v3_large": ("classifier", "3"),
            "mobilenet_v3_small": ("classifier", "3"),
        }.get(self.family, ("fc",))


# By the names of torchvision's models.
PUBLISHED = {
    "alexnet": Network("alexnet", norm="none"),
    **{f"vgg{d}": Network("vgg", depth=d, norm="none") for d in (11, 13, 16, 19)},
    **{f"vgg{d}_bn": Network("vgg", depth=d) for d in (11, 13, 16, 19)},
    "googlenet": Network("googlenet", transform_input=True),
    "mobilenet_v3_large": Network("mobilenet_v3_large"),
    "mobilenet_v3_small": Network("mobilenet_v3_small"),
    **{f"resnet{d}": Network(depth=d) for d in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": Network(depth=50, groups=32, width_per_group=4),
    "resnext101_32x8d": Network(depth=101, groups=32, width_per_group=8),
    "resnext101_64x4d": Network(depth=101, groups=64, width_per_group=4),
    "wide_resnet50_2": Network(depth=50, width_per_group=128),
    "wide_resnet101_2": Network(depth=101, width_per_group=128),
}


def build(
    network: Network,
    *,
    num_classes: int,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """Returns the network.

    Args:
      network: Its numbers.
      num_classes: Of the last layer.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers; logits are float32 always.
    """
    makers = {
        "resnet": functools.partial(
            resnet.resnet,
            network.depth,
            width=network.width,
            n_stages=network.n_stages,
            groups=network.groups,
            width_per_group=network.width_per_group,
        ),
        "alexnet": alexnet.alexnet,
        "vgg": functools.partial(vgg.vgg, network.depth),
        "googlenet": functools.partial(
            googlenet.GoogLeNet, transform_input=network.transform_input
        ),
        "mobilenet_v3_large": mobilenet.mobilenet_v3_large,
        "mobilenet_v3_small": mobilenet.mobilenet_v3_small,
    }
    fields: dict[str, Any] = {"num_classes": num_classes}
    if network.dropout is not None and network.family != "resnet":
        fields["dropout"] = network.dropout
    layer = _norm(network, axis_name)
    if layer is not None:
        fields["norm"] = layer
    return makers[network.family](dtype=dtype, **fields)


def _norm(network: Network, axis_name: str | None) -> Any:
    if network.norm == "group":
        return norm.GroupNorm
    if network.norm == "none" or network.family == "alexnet":
        if network.family not in ("alexnet", "vgg"):
            raise ValueError(f"`norm` may be 'none' for VGGs only. Got {network}.")
        return None
    own = {
        "googlenet": googlenet.GoogLeNet.norm,
        "mobilenet_v3_large": mobilenet.MobileNetV3Features.norm,
        "mobilenet_v3_small": mobilenet.MobileNetV3Features.norm,
    }
    # The fast variance, E[x^2] - E[x]^2, costs gradients their fourth digit.
    return functools.partial(
        own.get(network.family, norm.BatchNorm), axis_name=axis_name, use_fast_variance=False
    )
