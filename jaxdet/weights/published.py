"""The names of torchvision's published checkpoints, and the files that they stand for.

A file's name ends in the first digits of its SHA-256. Without a version, a name stands for the last
one listed, which is torchvision's default too.
"""

SERVER = "https://download.pytorch.org/models/"
FILES = {
    "alexnet:IMAGENET1K_V1": "alexnet-owt-7be5be79.pth",
    "googlenet:IMAGENET1K_V1": "googlenet-1378be20.pth",
    "mobilenet_v3_large:IMAGENET1K_V1": "mobilenet_v3_large-8738ca79.pth",
    "mobilenet_v3_large:IMAGENET1K_V2": "mobilenet_v3_large-5c1a4163.pth",
    "mobilenet_v3_small:IMAGENET1K_V1": "mobilenet_v3_small-047dcff4.pth",
    "resnet18:IMAGENET1K_V1": "resnet18-f37072fd.pth",
    "resnet34:IMAGENET1K_V1": "resnet34-b627a593.pth",
    "resnet50:IMAGENET1K_V1": "resnet50-0676ba61.pth",
    "resnet50:IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
    "resnet101:IMAGENET1K_V1": "resnet101-63fe2227.pth",
    "resnet101:IMAGENET1K_V2": "resnet101-cd907fc2.pth",
    "resnet152:IMAGENET1K_V1": "resnet152-394f9c45.pth",
    "resnet152:IMAGENET1K_V2": "resnet152-f82ba261.pth",
    "resnext50_32x4d:IMAGENET1K_V1": "resnext50_32x4d-7cdf4587.pth",
    "resnext50_32x4d:IMAGENET1K_V2": "resnext50_32x4d-1a0047aa.pth",
    "resnext101_32x8d:IMAGENET1K_V1": "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_32x8d:IMAGENET1K_V2": "resnext101_32x8d-110c445d.pth",
    "resnext101_64x4d:IMAGENET1K_V1": "resnext101_64x4d-173b62eb.pth",
    "vgg11:IMAGENET1K_V1": "vgg11-8a719046.pth",
    "vgg11_bn:IMAGENET1K_V1": "vgg11_bn-6002323d.pth",
    "vgg13:IMAGENET1K_V1": "vgg13-19584684.pth",
    "vgg13_bn:IMAGENET1K_V1": "vgg13_bn-abd245e5.pth",
    "vgg16:IMAGENET1K_FEATURES": "vgg16_features-amdegroot-88682ab5.pth",
    "vgg16:IMAGENET1K_V1": "vgg16-397923af.pth",
    "vgg16_bn:IMAGENET1K_V1": "vgg16_bn-6c64b313.pth",
    "vgg19:IMAGENET1K_V1": "vgg19-dcbb9e9d.pth",
    "vgg19_bn:IMAGENET1K_V1": "vgg19_bn-c79401a0.pth",
    "wide_resnet50_2:IMAGENET1K_V1": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet50_2:IMAGENET1K_V2": "wide_resnet50_2-9ba9bcbe.pth",
    "wide_resnet101_2:IMAGENET1K_V1": "wide_resnet101_2-32ee1156.pth",
    "wide_resnet101_2:IMAGENET1K_V2": "wide_resnet101_2-d733dc28.pth",
    "fasterrcnn_resnet50_fpn:COCO_V1": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "fasterrcnn_resnet50_fpn_v2:COCO_V1": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    "fasterrcnn_mobilenet_v3_large_fpn:COCO_V1": "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
    "fasterrcnn_mobilenet_v3_large_320_fpn:COCO_V1": (
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    ),
}
# Of labels 1 to 90, which are the numbers of COCO's categories; N/A never occurs.
COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "N/A", "backpack"),
    *("umbrella", "N/A", "N/A", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard"),
    *("sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "N/A", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "N/A", "dining table", "N/A", "N/A"),
    *("toilet", "N/A", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave"),
    *("oven", "toaster", "sink", "refrigerator", "N/A", "book", "clock", "vase", "scissors"),
    *("teddy bear", "hair drier", "toothbrush"),
)


def full_name(name: str) -> str | None:
    """Returns the key of `FILES` that a name stands for, or None where there is none.

    Args:
      name: Such as "resnet50" or "resnet50:IMAGENET1K_V1".
    """
    if name in FILES:
        return name
    versions = [key for key in FILES if key.partition(":")[0] == name]
    return versions[-1] if versions else None


def of_file(name: str) -> str | None:
    """Returns the key of `FILES` whose file has a name, or None where none has it."""
    return {file: key for key, file in FILES.items()}.get(name)


def url(name: str) -> str:
    """Returns where a published checkpoint lies.

    Args:
      name: As in `full_name`.

    Raises:
      ValueError: Where there is none of this name.
    """
    key = full_name(name)
    if key is None:
        known = ", ".join(dict.fromkeys(key.partition(":")[0] for key in FILES))
        raise ValueError(
            f"{name!r} is no run, no file of weights (.pth, .pt, .safetensors), and there are no "
            f"published weights of this name; there are {known}."
        )
    return SERVER + FILES[key]
