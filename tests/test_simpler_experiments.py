"""The scripts of the simpler systems: as `test_experiments.py`."""

import json

import cv2
import jax
import numpy as np
import pytest
from experiment_scripts import assert_written, load, run_script

from jaxdet.data import shapes, sources
from jaxdet.training import checkpoints, logging, processes
from jaxdet.weights import classifiers, detectors


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def classified(tmp_path_factory, data_dir):
    """A finished smoke run of the classifier."""
    out = tmp_path_factory.mktemp("runs") / "classifier"
    return out, run_script("classifier", ["smoke", "--data-dir", data_dir, "--out", out])


def test_classifies(classified, data_dir):
    out, metrics = classified
    assert_written(
        out,
        (
            *("config.json", "metrics.jsonl", "detections.json", "results.json", "curves.png"),
            *("pictures/val_000004.png", "pictures/test.png"),
        ),
    )
    # Guesses are of whole pictures, which is what a results file of 128 x 128 says.
    rows = json.loads((out / "detections.json").read_text())
    assert len(rows) == 16 * 5 and all(row["bbox"] == [0, 0, 128, 128] for row in rows)
    truth = sources.to_coco(shapes.load("test", data_dir=data_dir, config=shapes.SINGLE_TINY))
    label_of = {row["image_id"]: row["category_id"] for row in truth["annotations"]}
    first = {row["image_id"]: row["category_id"] for row in reversed(rows)}
    hits = [label_of[key] == label for key, label in first.items()]
    assert metrics["top1"] == pytest.approx(np.mean(hits), abs=1e-6)


def test_localizes_in_stages(data_dir, tmp_path):
    out = tmp_path / "staged"
    metrics = run_script("localizer", ["smoke", "--data-dir", data_dir, "--out", out])
    assert_written(
        out,
        (
            *("config.json", "metrics.jsonl", "detections.json", "results.json", "curves.png"),
            *("pictures/val_000004.png", "pictures/test.png", "progress.png"),
            *("progress/000002.json", "progress/000004.json", "classifier/metrics.jsonl"),
        ),
    )
    assert metrics.keys() >= {"localization_top1", "localization_top5", "mean_iou", "AP50"}
    assert json.loads((out / "results.json").read_text())["metrics"].keys() == metrics.keys()
    # The box head alone was trained.
    first, second = (
        checkpoints.load_variables(folder / "checkpoints" / "last")[0]["params"]
        for folder in (out / "classifier", out)
    )
    jax.tree.map(np.testing.assert_array_equal, first["network"], second["network"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first["box_head"], second["box_head"])
    assert all(np.array(jax.tree.leaves(moved)) > 0)
    rows = [row for row in logging.read_rows(out) if "loss" in row]
    assert all("loss/box" in row and "loss/class" not in row for row in rows)


def test_localizers_and_predictions_begin_with_a_classifier(classified, data_dir, tmp_path):
    out, _ = classified
    begun = tmp_path / "begun"
    arguments = ["smoke", "--data-dir", data_dir, "--out", begun, "--weights", out]
    run_script("localizer", arguments)
    assert not (begun / "classifier").exists()
    first, second = (
        checkpoints.load_variables(folder)[0]["params"]["network"] for folder in (out, begun)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    picture = tmp_path / "scene.png"
    source = shapes.load("test", data_dir=data_dir, config=shapes.SINGLE_TINY)
    cv2.imwrite(str(picture), source.read(0)[..., ::-1])
    predict = load("predict")
    rows = predict.main(predict.Config((picture,), checkpoint=begun, out=tmp_path / "found"))
    assert len(rows) == 5 and len(list((tmp_path / "found").glob("*.png"))) == 1


@pytest.mark.parametrize(
    "name, reader",
    [("classifier", classifiers), ("localizer", classifiers), ("faster_rcnn", detectors)],
)
def test_the_first_process_alone_reads_weights(name, reader, data_dir, tmp_path, monkeypatch):
    """Two on one machine would write the same download."""
    inside = []

    class Read(Exception):
        pass

    def on_first(function):
        inside.append(True)
        try:
            return function()
        finally:
            inside.pop()

    def read(*_, **__):
        assert inside
        raise Read

    monkeypatch.setattr(processes, "on_first", on_first)
    monkeypatch.setattr(reader, "load", read)
    arguments = ["smoke", "--data-dir", data_dir, "--out", tmp_path, "--weights", "any"]
    with pytest.raises(Read):
        run_script(name, arguments)


def test_adjusts_boxes(data_dir, tmp_path):
    out = tmp_path / "adjusted"
    metrics = run_script("box_adjustment", ["smoke", "--data-dir", data_dir, "--out", out])
    assert_written(out, ("config.json", "metrics.jsonl", "results.json", "adjusted.png"))
    # Boxes start where the jitter puts them, whatever was learnt.
    assert 0.3 < metrics["iou_0"] < 0.7
    assert metrics.keys() == {f"{kind}_{n}" for kind in ("iou", "right") for n in (0, 1, 3)}


def test_deep_pose_trains_its_stages(data_dir, tmp_path):
    out = tmp_path / "run"
    metrics = run_script("deep_pose", ["smoke", "--data-dir", data_dir, "--out", out])
    assert metrics.keys() == {"PCK", "PCK1", "PCK2", "PDJ", "PCP"}
    names = ("stage1/curves.png", "stage2/pictures/val_000003.png", "pictures/test.png")
    assert all(cv2.imread(str(out / name)) is not None for name in names)
    poses = json.loads((out / "poses.json").read_text())
    source = shapes.load("test", data_dir=data_dir, config=shapes.SINGLE_TINY)
    assert len(poses) == sum(int((~a.crowd).sum()) for a in source.annotations)
    assert all(len(row["keypoints"]) == 15 for row in poses)
    first, last = (checkpoints.load_variables(out / f"stage{i}") for i in (1, 2))
    for a, b in zip(
        *(jax.tree.leaves(v["params"]["stages_0"]) for v, _ in (first, last)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    # What the second stage was trained to expect is kept with it.
    assert len(last[1]["errors"]) == 1 and len(last[1]["errors"][0]["mean"]) == 5


def test_a_budget_is_that_of_each_stage(data_dir, tmp_path):
    """Of DeepPose's two stages of three updates, two a start; the last one has a report."""
    arguments = ["smoke", "--data-dir", data_dir, "--out", tmp_path, "--steps-now", 2]
    ends = []
    for _ in range(2):
        metrics = run_script("deep_pose", arguments)
        stages = sorted(tmp_path.glob("stage*"))
        done = [checkpoints.read_metadata(s / "checkpoints" / "last")["step"] for s in stages]
        ends.append((bool(metrics), done))
    assert ends == [(False, [2]), (True, [3, 2])]


def test_overfeat_trains_the_classifier_then_the_boxes(data_dir, tmp_path):
    out = tmp_path / "run"
    run_script("overfeat", ["smoke", "--data-dir", data_dir, "--out", out])
    for name in ("scales.png", "curves.png", "classifier/curves.png", "pictures/test.png"):
        assert cv2.imread(str(out / name)) is not None, name
    table = json.loads((out / "table.json").read_text())
    assert list(table) == ["the picture as one window", "one scale, coarse", "one scale, fine"]
    before, after = (
        checkpoints.load_variables(path)[0]["params"] for path in (out / "classifier", out)
    )
    jax.tree.map(np.testing.assert_array_equal, before["network"], after["network"])
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before["regressor"], after["regressor"]
    )
    assert any(jax.tree.leaves(moved))
