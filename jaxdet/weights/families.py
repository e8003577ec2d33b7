"""What a state dict is of, told by its tensors' names: for messages."""

from collections.abc import Iterable

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
