import dataclasses
import json
import math
import pathlib

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import pytest

from jaxdet.structures import Images
from jaxdet.systems import architectures

# Made by tests/golden/make_names.py.
NAMES = pathlib.Path(__file__).parents[1] / "golden/fasterrcnn_resnet50_fpn_names.json"


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def shapes(model, canvas=(64, 64)):
    images = Images(
        jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    return jax.eval_shape(model.init, jax.random.key(0), images)


def ours(name, shape):
    """The path and shape that a parameter of torchvision has here."""
    *module, kind = name.split(".")
    if kind == "weight":
        # [out, in, h, w] and [out, in] are [h, w, in, out] and [in, out] here.
        layouts = {4: (2, 3, 1, 0), 2: (1, 0)}
        if len(shape) == 1:
            kind = "scale"
        else:
            kind, shape = "kernel", [shape[axis] for axis in layouts[len(shape)]]
    kind = {"running_mean": "mean", "running_var": "var"}.get(kind, kind)
    return "/".join([*module, kind]), tuple(shape)


def test_parameters_are_torchvisions():
    names = json.loads(NAMES.read_text()).items()
    want = dict(ours(*item) for item in names if not item[0].endswith("num_batches_tracked"))
    variables = shapes(architectures.build(90))
    got = {path: leaf.shape for kind in variables.values() for path, leaf in by_path(kind).items()}
    assert got == want
    # What torchvision publishes for this model, 41755286, counts no frozen norm.
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])) == 41755286


@pytest.mark.parametrize("n_frozen", [0, 1, 2, 3])
def test_is_trainable_agrees_with_the_gradient_that_is_stopped(n_frozen):
    architecture = dataclasses.replace(cases.PYRAMID, norm="group", n_frozen=n_frozen)
    paths = list(by_path(shapes(architectures.build(2, architecture))["params"]))
    still = [p for p in paths if not architectures.is_trainable(p, architecture=architecture)]
    parts = {"/".join(path.split("/")[:3]) for path in still}
    frozen = ["conv1", "bn1", "layer1", "layer2"][: [0, 2, 3, 4][n_frozen]]
    assert parts == {f"backbone/body/{name}" for name in frozen}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"anchor_sizes": ((16.0,),) * 4}, "anchor_sizes"),
        ({"anchor_sizes": ()}, "anchor_sizes"),
        ({"pyramid": False, "anchor_sizes": ((16.0,),) * 2}, "anchor_sizes"),
    ],
)
def test_anchors_must_fit_the_levels(change, message):
    with pytest.raises(ValueError, match=message):
        architectures.build(2, dataclasses.replace(cases.PYRAMID, **change))


def test_layers_of_the_second_version():
    spec = dataclasses.replace(cases.PYRAMID, pyramid_norm=True, rpn_convs=2, head_convs=3)
    params = shapes(architectures.build(2, spec))["params"]
    assert params["backbone"]["fpn"]["layer_blocks"]["1"].keys() == {"0", "1"}
    assert "bias" not in params["backbone"]["fpn"]["layer_blocks"]["1"]["0"]
    assert params["rpn"]["head"]["conv"].keys() == {"0", "1"}
    # Torchvision counts the flattening layer between.
    assert params["roi_heads"]["box_head"].keys() == {"0", "1", "2", "4"}


def test_mobilenet_reads_two_maps_of_one_stride():
    spec = dataclasses.replace(architectures.MOBILENET_FPN, pyramid_features=8, head_features=8)
    model = architectures.build(2, spec)
    assert model.roi_heads.n_levels == 1 and spec.n_maps == 2
    paths = list(by_path(shapes(model)["params"]))
    still = {p.split("/")[2] for p in paths if not architectures.is_trainable(p, architecture=spec)}
    assert still == {str(i) for i in range(7)}
    with pytest.raises(ValueError, match="anchor_sizes"):
        architectures.build(2, dataclasses.replace(spec, anchor_sizes=((32.0,),) * 4))
