"""Faster R-CNNs as numbers that JSON can hold, and the networks that those stand for."""

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp

from jaxdet.features import fpn, mobilenet, norm, resnet
from jaxdet.proposals import rpn
from jaxdet.regions import heads
from jaxdet.systems.faster_rcnn import FasterRCNN

# C4 and C5, both at stride 32; and the layers with which stages begin.
MOBILENET_MAPS = (4, 5)
MOBILENET_STAGES = (0, 2, 4, 7, 13, 16, 17)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Faster R-CNN, in numbers that JSON can hold.

    The defaults are torchvision's `fasterrcnn_resnet50_fpn`.
    """

    backbone: Literal["resnet", "mobilenet_v3_large"] = "resnet"
    """`depth`, `width`, `n_stages` and `first_stage` are of the residual network."""
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Layers of the residual network."""
    width: int = 64
    """Channels of its first stage."""
    norm: Literal["batch", "frozen", "group"] = "frozen"
    """Batch norm synchronized over devices, batch norm as it was loaded, or group norm."""
    norm_epsilon: float = 1e-5
    """Added to variances; 0 in torchvision's `fasterrcnn_resnet50_fpn` of COCO."""
    n_frozen: int = 2
    """Stem and stages that are not trained: 0 trains all, 2 freezes the stem and C2 (resnet)."""
    n_stages: int = 4
    """Stages of the backbone, 1 to 4; the last has stride 2^(n_stages + 1)."""
    pyramid: bool = True
    """Whether a feature pyramid is read, or the last stage alone."""
    first_stage: int = 0
    """Stages left out of the pyramid; 0 starts it at C2, stride 4."""
    pyramid_features: int = 256
    """Channels of the pyramid."""
    pyramid_norm: bool = False
    """Whether the pyramid's layers have batch norm in place of a bias."""
    anchor_sizes: tuple[tuple[float, ...], ...] = (
        (32.0,),
        (64.0,),
        (128.0,),
        (256.0,),
        (512.0,),
    )
    """Of each level, pixels; one level more than the pyramid has stages adds P6."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of the anchors, height / width."""
    rpn_convs: int = 1
    """3x3 convolutions of the region proposal network."""
    canonical_size: float = 224.0
    """Side of the boxes that are read from P4, pixels; halves go to P3, and so on."""
    head_convs: int = 0
    """3x3 convolutions with batch norm in the head; 0 stands for two fully connected layers."""
    head_features: int = 1024
    """Width of the head's fully connected layers: two, or one after convolutions."""
    class_agnostic: bool = False
    """Whether all classes share one box regression."""
    aligned: bool = False
    """Whether RoIAlign shifts by half a cell; torchvision's first models do not."""

    @property
    def n_maps(self) -> int:
        """Maps of the backbone that are read."""
        if self.backbone == "mobilenet_v3_large":
            return len(MOBILENET_MAPS)
        return self.n_stages - self.first_stage if self.pyramid else 1

    @property
    def n_levels(self) -> int:
        """Levels that the head reads: with a MobileNet, whose maps have one stride, the first."""
        return 1 if self.backbone == "mobilenet_v3_large" else self.n_maps


# Of torchvision's `fasterrcnn_mobilenet_v3_large_fpn`.
MOBILENET_FPN = Architecture(
    backbone="mobilenet_v3_large",
    n_frozen=3,
    anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),) * 3,
)


def build(
    num_classes: int,
    architecture: Architecture = Architecture(),
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> FasterRCNN:
    """Returns the network.

    Args:
      num_classes: Of objects; background is one more.
      architecture: Its numbers.
      axis_name: The mapped axis over which batch statistics are synchronized.
      dtype: Of the layers; boxes and losses are float32 always.
    """
    spec = architecture
    # The fast variance, E[x^2] - E[x]^2, costs gradients their fourth digit.
    batch_norm = functools.partial(
        norm.BatchNorm,
        axis_name=axis_name,
        epsilon=spec.norm_epsilon,
        use_fast_variance=False,
    )
    backbone = _backbone(spec, batch_norm, dtype)
    if spec.head_convs:
        head = heads.ConvHead(
            spec.head_convs,
            features=spec.pyramid_features,
            dense_features=spec.head_features,
            axis_name=axis_name,
            dtype=dtype,
        )
    else:
        head = heads.TwoMLPHead(spec.head_features, dtype=dtype)
    return FasterRCNN(
        backbone=backbone,
        rpn=rpn.RPN(spec.anchor_sizes, spec.aspect_ratios, spec.rpn_convs, dtype=dtype),
        roi_heads=heads.RoIHeads(
            box_head=head,
            box_predictor=heads.BoxPredictor(num_classes, spec.class_agnostic),
            n_levels=spec.n_levels,
            canonical_size=spec.canonical_size,
            aligned=spec.aligned,
        ),
    )


def _backbone(spec: Architecture, batch_norm: Any, dtype: Any) -> Any:
    extra = len(spec.anchor_sizes) - spec.n_maps
    if extra not in ((0, 1) if spec.pyramid else (0,)):
        raise ValueError(
            f"`anchor_sizes` must have one entry for each of {spec.n_maps} levels"
            f"{' or one more' if spec.pyramid else ''}. Got {spec.anchor_sizes}."
        )
    norms = {
        "batch": batch_norm,
        "frozen": functools.partial(norm.FrozenBatchNorm, epsilon=spec.norm_epsilon),
        "group": norm.GroupNorm,
    }
    if spec.norm not in norms:
        raise ValueError(f"`norm` must be one of {sorted(norms)}. Got {spec.norm!r}.")
    fields = {"norm": norms[spec.norm], "n_frozen": spec.n_frozen, "dtype": dtype}
    if spec.backbone == "mobilenet_v3_large":
        body, first = mobilenet.mobilenet_v3_large(**fields).features, MOBILENET_MAPS[0]
    else:
        body = resnet.resnet(spec.depth, n_stages=spec.n_stages, width=spec.width, **fields)
        first = spec.first_stage
    if not spec.pyramid:
        return fpn.SingleLevelBackbone(body=body)
    top = fpn.FPN(
        spec.pyramid_features,
        extra_level=extra > 0,
        norm=batch_norm if spec.pyramid_norm else None,
        dtype=dtype,
    )
    return fpn.PyramidBackbone(body=body, fpn=top, first_stage=first)


def is_trainable(path: str, *, architecture: Architecture) -> bool:
    """Returns whether the parameter at a path such as "backbone/body/conv1/kernel" is trained."""
    n_frozen = architecture.n_frozen
    if architecture.backbone == "mobilenet_v3_large":
        frozen = [str(i) for i in range(MOBILENET_STAGES[n_frozen])]
    else:
        stages = [f"layer{i}" for i in range(1, n_frozen)]
        frozen = ["conv1", "bn1", *stages] if n_frozen else []
    return not path.startswith(tuple(f"backbone/body/{name}/" for name in frozen))
