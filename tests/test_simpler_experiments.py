"""The scripts of the simpler systems: as `test_experiments.py`."""

import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from experiment_scripts import assert_written, load, run_script

from jaxdet import predictor
from jaxdet.data import records, shapes, sources
from jaxdet.training import checkpoints, logging, processes, recipes
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


def test_classifiers_refuse_pictures_of_many_objects(data_dir, tmp_path):
    arguments = ["smoke", "--data-dir", data_dir, "--scenes", "tiny", "--out", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"hold several objects.*--crops 0\.1.*--n-objects 1"):
        run_script("classifier", arguments)


def test_localizes_in_stages(data_dir, tmp_path, capsys):
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
    # It is evaluated on pictures of the kind that it was trained on.
    evaluate = load("evaluate")
    again = evaluate.main(
        evaluate.Config("shapes", data_dir=data_dir, checkpoint=out, out=tmp_path / "again")
    )
    assert "scenes single_tiny" in capsys.readouterr().out
    assert again.metrics["AP50"] == pytest.approx(metrics["AP50"], abs=1e-6)
    guesses = json.loads((tmp_path / "again" / "results.json").read_text())["guesses"]
    assert guesses == pytest.approx({name: metrics[name] for name in guesses})
    assert guesses.keys() >= {"top1", "localization_top5", "mean_iou"}
    rows = [json.loads((at / "detections.json").read_text()) for at in (out, tmp_path / "again")]
    assert rows[0] == rows[1]
    full = evaluate.Config("shapes", checkpoint=out, as_trained=False)
    assert evaluate.as_trained(full).scenes == "full"
    cut = evaluate.as_trained(dataclasses.replace(full, crops=0.1, n_objects=2))
    assert (cut.crops, cut.n_objects) == (0.1, 2)
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


def test_a_budget_ends_the_first_stage(data_dir, tmp_path, capsys):
    arguments = ["smoke", "--data-dir", data_dir, "--out", tmp_path, "--steps-now", 1]
    assert run_script("localizer", arguments) == {}
    assert not (tmp_path / "results.json").exists()
    assert "ended at step 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("unfinished", [0, 2, 8])
def test_compare_waits_for_all_ways(tmp_path, monkeypatch, capsys, unfinished):
    """`run` is stood in for: it ends all ways but one."""
    module, seen = load("localizer"), []

    def run(config, *, free):
        seen.append((config, free))
        ended = len(seen) - 1 != unfinished
        return ended, {name: len(seen) / 10 for name in module.MEASURES} if ended else {}

    monkeypatch.setattr(module, "run", run)
    metrics = module.main(dataclasses.replace(module.SMOKE, compare=True, out=tmp_path))
    rows = (tmp_path / "table.md").read_text().splitlines() if unfinished else ["", ""]
    assert len(rows) - 2 == min(unfinished, 8) and len({c.out for c, _ in seen}) == len(seen)
    if unfinished < 8:
        assert metrics == {} and len(seen) == unfinished + 1
        assert "the same command goes on" in capsys.readouterr().out
        return
    assert metrics["localization_top1"] == 0.8
    assert rows[-1].startswith("| vector | by class | joint")
    classifier = str(seen[0][0].out / "classifier")
    assert [c.weights for c, _ in seen] == ["", *[classifier] * 3, *[""] * 4]
    # Where the folder is moved to must not matter.
    assert ["weights" in free for _, free in seen] == [False, *[True] * 3, *[False] * 4]


def test_classifiers_of_several_boxes_are_not_shared(monkeypatch, tmp_path):
    module, seen = load("localizer"), []

    def run(config, *, free):
        seen.append((config.weights, free))
        return True, dict.fromkeys(module.MEASURES, 0.5)

    monkeypatch.setattr(module, "run", run)
    spec = dataclasses.replace(module.SMOKE.architecture, n_boxes=2)
    module.main(dataclasses.replace(module.SMOKE, compare=True, architecture=spec, out=tmp_path))
    assert seen == [("", module.FREE)] * 8


def test_flags_without_effect_are_refused(data_dir, tmp_path):
    arguments = ["smoke", "--data-dir", data_dir, "--out", tmp_path]
    with pytest.raises(ValueError, match=r"--architecture\.n-boxes must be.*: 1 in 64\. Got 2$"):
        run_script("localizer", [*arguments, "--architecture.n-boxes", 2])
    for name in ("localizer", "overfeat"):
        module = load(name)
        config = dataclasses.replace(
            module.SMOKE,
            selection=dataclasses.replace(module.SMOKE.selection, data_dir=data_dir),
            loss=module.SMOKE.loss._replace(train_boxes=False),
            out=tmp_path,
        )
        with pytest.raises(ValueError, match=r"--loss\.train-boxes are set by each stage"):
            module.main(config)


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
    # Gone on with after the classifier was moved: only where that is said to be free.
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    with pytest.raises(recipes.ConfigError, match="weights"):
        run_script("localizer", [*arguments[:-1], moved])
    module = load("localizer")
    config = recipes.from_command_line(
        module.CONFIGS,
        default="smoke",
        description="",
        arguments=[*map(str, arguments[:-1]), str(moved)],
    )
    ended, metrics = module.run(config, free=(*module.FREE, "weights"))
    assert ended and metrics.keys() >= set(module.MEASURES)
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


def test_adjusts_boxes_of_a_folder(data_dir, tmp_path):
    """One update: does every part of the config work?"""
    shapes.load("train", data_dir=data_dir, config=shapes.TINY)
    (folder,) = (path.parent for path in data_dir.glob("shapes/tiny/*/dataset_info.json"))
    spec = ["--architecture.network.width", 16, "--architecture.features", 16]
    arguments = ["folder", "--data", folder, "--canvases", 64, 64, *spec]
    small = ["--steps", 1, "--warmup-steps", 0, "--batch-size", 4, "--counts", 0, 1]
    metrics = run_script("box_adjustment", [*arguments, *small, "--out", tmp_path])
    assert metrics.keys() == {"iou_0", "iou_1", "right_0", "right_1"}


@pytest.fixture(scope="module")
def posed(tmp_path_factory, data_dir):
    """A finished smoke run of DeepPose."""
    out = tmp_path_factory.mktemp("runs") / "deep_pose"
    return out, run_script("deep_pose", ["smoke", "--data-dir", data_dir, "--out", out])


def test_deep_pose_trains_its_stages(posed, data_dir):
    out, metrics = posed
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
    with pytest.raises(ValueError, match=r"no detector: it finds joints.*deep_pose\.py"):
        predictor.load(out / "stage2")


def test_deep_pose_goes_on_after_a_budget_and_draws_nothing_if_told_so(posed, data_dir, tmp_path):
    whole, metrics = posed
    arguments = ["smoke", "--data-dir", data_dir, "--out", tmp_path, "--n-pictures", 0]
    ends = []
    for _ in range(2):  # Two of the three updates of a stage; the last one has a report.
        found = run_script("deep_pose", [*arguments, "--steps-now", 2])
        stages = sorted(tmp_path.glob("stage*"))
        done = [checkpoints.read_metadata(s / "checkpoints" / "last")["step"] for s in stages]
        ends.append((bool(found), done))
    assert ends == [(False, [2]), (True, [3, 2])]
    assert run_script("deep_pose", arguments) == metrics
    for name in ("stage1/pictures/val_000002.png", "pictures/test.png"):
        assert (cv2.imread(str(tmp_path / name)) == 255).all()
    for stage in ("stage1", "stage2"):
        first, second = (
            checkpoints.load_variables(out / stage / "checkpoints" / "last")[0]
            for out in (whole, tmp_path)
        )
        jax.tree.map(np.testing.assert_array_equal, first, second)
    assert (tmp_path / "poses.json").read_text() == (whole / "poses.json").read_text()


def test_deep_pose_tells_which_joints_it_measures(data_dir):
    module = load("deep_pose")
    source = shapes.load("test", data_dir=data_dir, config=shapes.SINGLE_TINY)
    text = module.describe_joints(module.SMOKE, source)
    a, b = (source.keypoint_names[i] for i in module.SMOKE.architecture.torso)
    assert text.startswith(f"torso: {a} to {b}; limbs: ") and "\n" not in text
    unpaired = dataclasses.replace(source, keypoint_pairs=())
    assert "--augmentation.horizontal-flip 0" in module.describe_joints(module.SMOKE, unpaired)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limbs", 0, 1, 4, 5], r"--limbs must be numbers of the 5 keypoints.*\(4, 5\)"),
        (["--architecture.torso", 0, 12], r"--architecture\.torso must be.*\(0, 12\)"),
    ],
)
def test_deep_pose_names_the_flag_that_does_not_fit_the_joints(data_dir, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_script("deep_pose", ["smoke", "--data-dir", data_dir, "--out", tmp_path, *flags])


def test_overfeat_trains_the_classifier_then_the_boxes(data_dir, tmp_path):
    out = tmp_path / "run"
    run_script("overfeat", ["smoke", "--data-dir", data_dir, "--out", out])
    for name in ("scales.png", "curves.png", "classifier/curves.png", "pictures/test.png"):
        assert cv2.imread(str(out / name)) is not None, name
    table = json.loads((out / "table.json").read_text())
    scale = load("overfeat").SMOKE.detect.scales[0]
    middle = f"the middle window, x{scale:g}"
    assert list(table) == [middle, "one scale, coarse", "one scale, fine"]
    for row in table.values():
        assert set(row) == {
            f"{part}/{key}" for part in ("several", "off_centre") for key in ("AP50", "AR100")
        }
    before, after = (
        checkpoints.load_variables(path)[0]["params"] for path in (out / "classifier", out)
    )
    jax.tree.map(np.testing.assert_array_equal, before["network"], after["network"])
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before["regressor"], after["regressor"]
    )
    assert any(jax.tree.leaves(moved))


def test_ways_to_look_at_one_scale_and_at_several():
    module = load("overfeat")
    config = module.SHAPES
    assert len(config.detect.scales) == 4
    ways = module.ways_to_look(config)
    middles = [f"the middle window, x{scale:g}" for scale in config.detect.scales]
    for name, scale in zip(middles, config.detect.scales, strict=True):
        way = ways.pop(name)
        assert way.scales == (scale,) and way.middle and way.max_candidates == 1
    assert {name: (len(way.scales), way.fine) for name, way in ways.items()} == {
        "one scale, coarse": (1, False),
        "one scale, fine": (1, True),
        "all scales, coarse": (4, False),
        "all scales, fine, not merged": (4, True),
        "all scales, fine": (4, True),
    }
    assert ways["one scale, fine"].scales == config.detect.scales[2:3]
    assert ways["all scales, fine"] == config.detect
    unmerged = ways["all scales, fine, not merged"]
    assert unmerged.merge_threshold < 0
    assert unmerged._replace(merge_threshold=config.detect.merge_threshold) == config.detect


def test_off_centre_is_far_from_the_middle():
    def picture(*boxes, crowd=False):
        n = len(boxes)
        return records.Annotation(
            1,
            "a",
            (60, 80),  # A diagonal of 100 px, so 25 are far; the middle is (40, 30).
            np.array(boxes, np.float32).reshape(-1, 4),
            np.ones(n, np.int32),
            np.full(n, crowd),
            np.zeros(n, bool),
        )

    middle = (30, 20, 50, 40)
    near, far, other = (55, 40, 65, 60), (60, 40, 60, 60), (0, 0, 10, 10)
    annotations = (
        picture(near),  # 20 to the right, 20 down: 28 away.
        picture((50, 40, 60, 50)),  # 15 and 15.
        picture(middle, far, other),
        picture(far, crowd=True),
        picture(),
        picture((60, 40, 62, 50)),  # 21 and 15: 25.8.
        picture((59, 40, 61, 50)),  # 20 and 15: just 25.
    )
    source = records.Source("made", ("a",), annotations, lambda i: None)
    part = load("overfeat").off_centre(source)
    several = load("overfeat").with_several(source).annotations
    assert [len(a.labels) for a in several] == [3]
    assert [a.difficult.tolist() for a in part.annotations] == [
        [False],
        [True, False, False],
        [False],
        [False],
    ]
