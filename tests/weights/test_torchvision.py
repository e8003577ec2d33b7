import dataclasses

import faster_rcnn_cases as cases
import jax
import numpy as np
import pytest

from jaxdet.weights import torchvision
from jaxdet.weights.detectors import variable_shapes
from jaxdet.weights.tensor_pickle import WeightsError

ARCHITECTURE = dataclasses.replace(
    cases.PYRAMID, norm="frozen", pyramid_norm=True, head_convs=1, rpn_convs=2
)


def drawn(architecture=ARCHITECTURE, num_classes=cases.K):
    return jax.device_get(cases.drawn(variable_shapes(num_classes, architecture)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("architecture", [cases.PYRAMID, cases.SINGLE_LEVEL, ARCHITECTURE])
def test_there_and_back(architecture):
    variables = drawn(architecture)
    state_dict = torchvision.to_state_dict(variables)
    shapes = variable_shapes(cases.K, architecture)
    assert_equal(torchvision.from_state_dict(state_dict, shapes), variables)


def test_names_and_layouts():
    variables = drawn()
    state_dict = torchvision.to_state_dict(variables)
    params, stats, frozen = (variables[k] for k in ("params", "batch_stats", "frozen"))
    want = {
        "backbone.body.conv1.weight": np.einsum(
            "hwio->oihw", params["backbone"]["body"]["conv1"]["kernel"]
        ),
        "backbone.body.bn1.running_var": frozen["backbone"]["body"]["bn1"]["var"],
        "backbone.body.bn1.weight": frozen["backbone"]["body"]["bn1"]["scale"],
        "backbone.fpn.inner_blocks.0.1.running_mean": stats["backbone"]["fpn"]["inner_blocks"]["0"][
            "1"
        ]["mean"],
        "rpn.head.conv.1.0.bias": params["rpn"]["head"]["conv"]["1"]["0"]["bias"],
        "roi_heads.box_predictor.cls_score.weight": params["roi_heads"]["box_predictor"][
            "cls_score"
        ]["kernel"].T,
    }
    for name, array in want.items():
        np.testing.assert_array_equal(state_dict[name], array)
    counters = [n for n in state_dict if n.endswith("num_batches_tracked")]
    variances = [n for n in state_dict if n.endswith("running_var")]
    assert len(counters) == len(jax.tree.leaves(stats)) // 2 < len(variances)  # Of trained norms.
    assert all(state_dict[n].shape == () and state_dict[n].dtype == np.int64 for n in counters)
    assert all(array.flags.c_contiguous for array in state_dict.values())


def test_layers_that_read_flat_maps():
    """A cell's channel meets the same number, whichever way the map is laid out flat."""
    variables = drawn()
    kernel = variables["params"]["roi_heads"]["box_head"]["2"]["kernel"]
    weight = torchvision.to_state_dict(variables)["roi_heads.box_head.2.weight"]
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(7, 7, cases.PYRAMID.pyramid_features))
    np.testing.assert_allclose(
        cells.reshape(-1) @ kernel, weight @ cells.transpose(2, 0, 1).reshape(-1), rtol=1e-5
    )


def test_old_names_wrappers_and_types():
    variables = drawn(cases.PYRAMID)
    state_dict = torchvision.to_state_dict(variables)
    old = {}
    for name, array in state_dict.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = name.replace("inner_blocks.0.0.", "inner_blocks.0.")
        name = name.replace("layer_blocks.1.0.", "layer_blocks.1.")
        wide = array.astype(np.float64) if array.dtype == np.float32 else array
        old[f"module.{name}"] = wide
    assert len(set(old) - {f"module.{name}" for name in state_dict}) == 6
    got = torchvision.from_state_dict(old, variable_shapes(cases.K, cases.PYRAMID))
    assert_equal(got, variables)


def test_every_misfit_is_named():
    state_dict = torchvision.to_state_dict(drawn())
    del state_dict["rpn.head.cls_logits.bias"]
    state_dict["roi_heads.mask_head.0.0.weight"] = np.zeros((1, 2), np.float32)
    state_dict["rpn.head.bbox_pred.weight"] = np.zeros((1, 2, 3, 4), np.float32)
    state_dict["rpn.head.bbox_pred.bias"] = state_dict["rpn.head.bbox_pred.bias"].astype(int)
    with pytest.raises(WeightsError) as fault:
        torchvision.from_state_dict(state_dict, variable_shapes(cases.K, ARCHITECTURE))
    lines = str(fault.value).splitlines()
    assert lines[0] == (
        "4 tensors do not fit; the weights seem to be those of a Mask R-CNN of torchvision:"
    )
    assert lines[1:] == [
        "  not wanted: roi_heads.mask_head.0.0.weight [1, 2]",
        "  rpn.head.bbox_pred.bias is of type int64, should be of floating point",
        "  rpn.head.bbox_pred.weight is [1, 2, 3, 4], should be [4, 16, 1, 1]",
        "  missing: rpn.head.cls_logits.bias [1]",
    ]


def test_another_number_of_classes_does_not_fit():
    with pytest.raises(WeightsError, match=r"bbox_pred\.bias is \[8\], should be \[16\]"):
        torchvision.from_state_dict(
            torchvision.to_state_dict(drawn(num_classes=1)), variable_shapes(3, ARCHITECTURE)
        )


def test_wrappers_are_taken_off():
    array = np.zeros(2, np.float32)
    wrapped = {"_orig_mod.module.fc.bias": array, "n_averaged": np.int64(3)}
    assert list(torchvision.tidy(wrapped)) == ["fc.bias"]
    with pytest.raises(WeightsError, match=r"fc\.bias is there twice.* as module\.fc\.bias"):
        torchvision.tidy({"fc.bias": array, "module.fc.bias": array})
