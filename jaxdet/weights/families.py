"""What a state dict is of, told by its tensors."""

import re
from collections.abc import Collection, Iterable
from typing import Literal

# (a name begins with all of these, what that is); the first that fits.
_FAMILIES = (
    (("roi_heads.mask_head.", "backbone."), "a Mask R-CNN of torchvision"),
    (("roi_heads.keypoint_head.", "backbone."), "a Keypoint R-CNN of torchvision"),
    (("roi_heads.box_head.", "backbone.body.layer1."), "a Faster R-CNN of torchvision on a ResNet"),
    (("roi_heads.box_head.", "backbone.body.0."), "a Faster R-CNN of torchvision on a MobileNetV3"),
    (("head.regression_head.bbox_ctrness.",), "an FCOS of torchvision"),
    (("head.classification_head.cls_logits.",), "a RetinaNet of torchvision"),
    (("head.classification_head.module_list.",), "an SSD of torchvision"),
    (("proposal_generator.", "roi_heads."), "a detector of detectron2"),
    (("backbone.", "bbox_head."), "a detector of mmdetection"),
    (("transformer.", "class_embed."), "a DETR"),
    (("model.0.", "model.1."), "a YOLO of ultralytics"),
    (("layer1.0.", "fc."), "a ResNet classifier"),
    (("Mixed_5b.",), "an Inception classifier"),
    (("inception3a.",), "a GoogLeNet classifier"),
    (("features.", "classifier."), "a classifier of torchvision (VGG, AlexNet, MobileNet, ...)"),
)


Depth = Literal[18, 34, 50, 101, 152]
# Blocks of the four stages, and whether the last convolution of one is its third.
_RESNETS: dict[Depth, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def count(names: Iterable[str], pattern: str) -> int:
    """Returns how many different first groups of a pattern there are among names."""
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})


def resnet(names: Collection[str], *, prefix: str = "") -> tuple[Depth | None, tuple[int, ...]]:
    """Returns the depth of a ResNet, or None for another one, and the blocks of each stage.

    Args:
      names: Of a state dict.
      prefix: What comes before `layer1`.
    """
    before = re.escape(prefix)
    stages = [count(names, rf"{before}layer{i}\.(\d+)\.conv1\.weight") for i in range(1, 5)]
    blocks = tuple(n for n in stages if n)
    third = f"{prefix}layer1.0.conv3.weight" in names
    for depth, (known, has_third) in _RESNETS.items():
        if blocks and known[: len(blocks)] == blocks and has_third == third:
            return depth, blocks
    return None, blocks


def describe(names: Iterable[str]) -> str:
    """Returns what tensors of these names seem to belong to.

    Args:
      names: Of a state dict.
    """
    names = sorted(names)
    for starts, family in _FAMILIES:
        if all(any(name.startswith(start) for name in names) for start in starts):
            return family
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"something unknown ({shown or 'no tensors at all'})"
