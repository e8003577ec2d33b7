"""Writes backbones.npz with torchvision 0.28 (torch 2.13, CPU): python PATH_OF_THIS_FILE

Minutes. Weights and pictures are drawn by the functions of tests/features/backbone_cases.py, so
only what comes out is kept, and the names and shapes of what goes in.
"""

import pathlib
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.detection import backbone_utils
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import feature_pyramid_network as fpn

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "features"))
import backbone_cases as cases

warnings.filterwarnings("ignore", "The default weight initialization of GoogleNet")
OUT: dict[str, np.ndarray] = {}


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def fill(model, key):
    """Gives a model its weights and keeps its names."""
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    rows = np.array([" ".join([name, *map(str, v.shape)]) for name, v in state.items()])
    OUT[f"{key}/names"] = rows
    drawn = {name: torch.from_numpy(v) for name, v in cases.state_dict(rows).items()}
    model.load_state_dict(drawn, strict=False)
    return model


def stages(name, model):
    """Modules, and whether what they read or what they put out is a stage's map."""
    if name == "googlenet":
        pools = [model.maxpool1, model.maxpool2, model.maxpool3, model.maxpool4, model.avgpool]
        return [(pool, "read") for pool in pools]
    if name.startswith("mobilenet"):
        layers = model.features
        strided = [i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False)]
        return [(layers[i], "put out") for i in (0, *strided, len(layers) - 1)]
    if hasattr(model, "features"):
        pools = [m for m in model.features if isinstance(m, torch.nn.MaxPool2d)]
        return [(pool, "read") for pool in pools]
    return [(getattr(model, f"layer{i}"), "put out") for i in range(1, 5)]


def classify(name):
    arguments = {"aux_logits": True} if name == "googlenet" else {}
    model = fill(getattr(torchvision.models, name)(weights=None, **arguments), name).eval()
    maps, seen = [], {}
    for module, which in stages(name, model):
        if which == "read":
            module.register_forward_pre_hook(lambda _, x: maps.append(nhwc(x[0]).copy()))
        else:
            module.register_forward_hook(lambda _, x, y: maps.append(nhwc(y).copy()))
    if name == "googlenet":
        for part in ("inception4a", "inception4d"):
            module = getattr(model, part)
            module.register_forward_hook(lambda _, x, y, part=part: seen.update({part: y}))
    OUT[f"{name}/logits"] = model(x := nchw(cases.pictures(2, 96, 80, 3)))[:, cases.CLASSES]
    OUT[f"{name}/maps"] = np.stack([cases.summary(each) for each in maps])
    if name == "googlenet":
        OUT[f"{name}/aux1"] = model.aux1(seen["inception4a"])[:, cases.CLASSES]
        OUT[f"{name}/aux2"] = model.aux2(seen["inception4d"])[:, cases.CLASSES]
        model.transform_input = True
        OUT[f"{name}/transformed"] = model(x)[:, cases.CLASSES]


def pyramid(key, shapes, extra, norm=None):
    channels = [c for _, _, c in shapes]
    model = fill(fpn.FeaturePyramidNetwork(channels, 8, extra, norm), key).eval()
    maps = {str(i): nchw(cases.pictures(2, *shape)) for i, shape in enumerate(shapes)}
    for i, level in enumerate(model(maps).values()):
        OUT[f"{key}/P{i}"] = nhwc(level)


def backbone(key, model):
    """A detector's: the body without its classifier, and the pyramid."""
    model = fill(model, key).eval()
    levels = model(nchw(cases.pictures(2, 97, 75, 3))).values()
    OUT[f"{key}/maps"] = np.stack([cases.summary(nhwc(level)) for level in levels])


def train(key):
    """Steps of a narrow cut: the loss of each, the first gradient's norms, the last statistics."""
    spec = cases.TRAINING
    model = fill(ResNet(BasicBlock, [1, 1, 1, 1]), key).train()
    optimizer = torch.optim.SGD(
        model.parameters(), spec["learning_rate"], momentum=spec["momentum"]
    )
    x = nchw(cases.pictures(spec["batch"], spec["size"], spec["size"], 3))
    losses = []
    for step in range(spec["steps"]):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.arange(spec["batch"]))
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
            OUT[f"{key}/gradients"] = np.array(list(norms.values()), np.float32)
            OUT[f"{key}/gradient_names"] = np.array(list(norms))
        optimizer.step()
    OUT[f"{key}/losses"] = np.array(losses, np.float32)
    for name, value in model.state_dict().items():
        if name.endswith(("layer1.0.bn1.running_mean", "running_var")):
            OUT[f"{key}/{name}"] = value[::16]


def pools():
    """Pooling of sizes that windows and bins do not divide."""
    x = nchw(cases.pictures(1, 13, 8, 2))
    for shape in ((6, 6), (7, 7), (4, 4), (1, 1), (16, 3)):
        OUT[f"adaptive/{shape[0]}x{shape[1]}"] = nhwc(F.adaptive_avg_pool2d(x, shape))
    for size, stride, padding in ((3, 2, 0), (2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 3, 1), (3, 3, 1)):
        for ceil_mode in (False, True):
            y = F.max_pool2d(x, size, stride, padding, ceil_mode=ceil_mode)
            OUT[f"max/{size}-{stride}-{padding}-{int(ceil_mode)}"] = nhwc(y)


if __name__ == "__main__":
    with torch.no_grad():
        for name in cases.MODELS:
            classify(name)
        pools()
        for case, shapes in cases.PYRAMIDS.items():
            pyramid(f"fpn_{case}", shapes, None)
        odd = cases.PYRAMIDS["odd"]
        pyramid("fpn_pool", odd, fpn.LastLevelMaxPool())
        pyramid("fpn_norm", odd, fpn.LastLevelMaxPool(), torch.nn.BatchNorm2d)
        pyramid("fpn_c5", odd, fpn.LastLevelP6P7(16, 8))
        pyramid("fpn_p5", odd, fpn.LastLevelP6P7(8, 8))
        backbone(
            "resnet18_fpn",
            backbone_utils.resnet_fpn_backbone(
                backbone_name="resnet18",
                weights=None,
                returned_layers=[2, 3, 4],
                extra_blocks=fpn.LastLevelP6P7(256, 256),
            ),
        )
        backbone(
            "mobilenet_fpn",
            backbone_utils.mobilenet_backbone(
                backbone_name="mobilenet_v3_large", weights=None, fpn=True
            ),
        )
    train("train")
    arrays = {key: np.asarray(value) for key, value in OUT.items()}
    np.savez_compressed(cases.PATH, **arrays)
    for name in cases.MODELS:
        print(name, arrays[f"{name}/logits"][0, :3], cases.PATH.stat().st_size)
