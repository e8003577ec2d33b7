"""Every script's smoke config runs, writes what its header says, and starts where it stopped."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import signal

import cv2
import faster_rcnn_cases as cases
import jax
import numpy as np
import pytest
from experiment_scripts import load, run_script

from jaxdet.data import shapes, sources
from jaxdet.data.resize import ShortSide
from jaxdet.features import networks
from jaxdet.features.networks import Network
from jaxdet.systems import faster_rcnn as system
from jaxdet.systems.architectures import Architecture
from jaxdet.training import checkpoints, logging, loop, recipes
from jaxdet.weights import description, detectors, files, torchvision


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@contextlib.contextmanager
def counted_traces():
    """Counts how often `loss` and `detect` are traced, by canvas."""
    traces = collections.Counter()
    with pytest.MonkeyPatch.context() as patch:
        original_loss, original_detect = system.loss, system.detect

        def loss(model, variables, batch, *, train, **options):
            traces["loss", batch.images.pixels.shape[1:3], train] += 1
            return original_loss(model, variables, batch, train=train, **options)

        def detect(model, variables, images, **options):
            traces["detect", images.pixels.shape[1:3]] += 1
            return original_detect(model, variables, images, **options)

        patch.setattr(system, "loss", loss)
        known = description.SYSTEMS["faster_rcnn"]
        patch.setitem(description.SYSTEMS, "faster_rcnn", known._replace(detect=detect))
        yield traces


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A finished smoke run, with how often each function was traced."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    with counted_traces() as traces:
        metrics = run_script("faster_rcnn", ["smoke", "--data-dir", data_dir, "--out", out])
    return out, metrics, traces


def test_writes_what_its_header_says(run):
    out, metrics, _ = run
    names = (
        *("config.json", "metrics.jsonl", "detections.json", "results.json"),
        *("precision_recall.png", "curves.png", "pictures/val_000004.png", "pictures/test.png"),
    )
    for name in names:
        assert (out / name).stat().st_size > 0, name
    for png in out.rglob("*.png"):
        assert cv2.imread(str(png)) is not None, png
    assert any((out / "tensorboard").iterdir())
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["metrics"].keys() >= {"AP", "AP50", "AR100"}
    assert results["metrics"]["AP"] == pytest.approx(metrics["AP"])
    assert results["seed"] == 0 and results["seconds"] > 0
    rows = logging.read_rows(out)
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6]
    four = {"loss/rpn_objectness", "loss/rpn_box", "loss/roi_class", "loss/roi_box"}
    assert all(four <= row.keys() for row in trained)
    evaluated = [row for row in rows if "eval/AP" in row]
    assert [row["step"] for row in evaluated] == [4, 6]
    assert all("eval/loss/roi_box" in row for row in evaluated)


def test_compiles_once_for_each_canvas(run):
    _, _, traces = run
    canvas = (128, 128)
    assert traces == {("loss", canvas, True): 1, ("loss", canvas, False): 1, ("detect", canvas): 1}


def test_predicts_from_the_checkpoint(run, data_dir, tmp_path):
    out, _, _ = run
    source = shapes.load("test", data_dir=data_dir, config=shapes.TINY)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        enlarged = cv2.resize(source.read(i)[..., ::-1], (200, 150 + i))
        cv2.imwrite(str(folder / f"scene_{i}.png"), enlarged)
    predict = load("predict")
    config = predict.Config(
        checkpoint=out, pictures=(folder,), out=tmp_path / "found", score_threshold=0.0
    )
    rows = predict.main(config)
    assert len(list((tmp_path / "found").glob("*_scene_*.png"))) == 3
    assert json.loads((tmp_path / "found" / "detections.json").read_text()) == rows
    described = json.loads((tmp_path / "found" / "pictures.json").read_text())
    assert [image["height"] for image in described["images"]] == [150, 151, 152]
    assert [c["name"] for c in described["categories"]] == list(source.classes)


def test_evaluates_a_checkpoint_and_a_results_file_alike(run, data_dir, tmp_path):
    out, metrics, _ = run
    evaluate = load("evaluate")
    common = {"data": "shapes", "data_dir": data_dir, "scenes": "tiny", "split": "test"}
    by_checkpoint = evaluate.main(
        evaluate.Config(**common, checkpoint=out, out=tmp_path / "a", batch_size=4)
    )
    by_file = evaluate.main(
        evaluate.Config(**common, results=out / "detections.json", out=tmp_path / "b")
    )
    for found in (by_checkpoint, by_file):
        assert found.metrics["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    with pytest.raises(ValueError, match="either"):
        evaluate.main(evaluate.Config(**common, out=tmp_path / "c"))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A state dict of torchvision's names, of a narrow network for three classes."""
    spec = Architecture(depth=18, width=8, n_frozen=2, pyramid_features=8, head_features=8)
    drawn = cases.drawn(detectors.variable_shapes(3, spec))
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    files.write(path, torchvision.to_state_dict(jax.device_get(drawn)))
    return path


def test_fine_tunes_from_weights(weights_file, data_dir, tmp_path):
    out = tmp_path / "run"
    arguments = ["smoke", "--data-dir", data_dir, "--out", out, "--steps", 4]
    run_script("faster_rcnn", [*arguments, "--weights", weights_file, "--fine-tune-rate", 1e-3])
    detector = detectors.load_checkpoint(out)
    begun = detectors.load(weights_file)
    assert detector.description.architecture == begun.description.architecture
    assert len(detector.description.classes) == 8
    body, before = (d.variables["params"]["backbone"]["body"] for d in (detector, begun))
    kept, trained = "layer1", "layer2"
    jax.tree.map(np.testing.assert_array_equal, body[kept], before[kept])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), body[trained], before[trained])
    assert all(0 < x < 0.1 for x in jax.tree.leaves(moved))


def test_begins_with_a_trained_backbone(run, tmp_path, monkeypatch):
    """What is read; `test_classifiers` holds what becomes of it."""
    script, network = load("faster_rcnn"), Network(width=12, n_stages=2)
    path = tmp_path / "resnet18-f37072fd.pth"
    drawn = cases.drawn(detectors.variable_shapes(3, network))
    files.write(path, torchvision.to_state_dict(drawn))
    monkeypatch.setitem(networks.PUBLISHED, "resnet18", network)
    config = dataclasses.replace(script.SMOKE, backbone=str(path), out=tmp_path / "run")
    begun, trained = script.read_beginning(config)
    assert begun.architecture == dataclasses.replace(script.SMOKE.architecture, width=12)
    assert begun.training == config.training
    fresh = cases.drawn(detectors.variable_shapes(8, begun.architecture), seed=1)
    variables, text = script.begun_with(trained, fresh, ("a",) * 8)
    assert text == "The backbone is trained, but for layer3; all else is new."
    body = variables["params"]["backbone"]["body"]
    kept = drawn["params"]["network"]["conv1"]["kernel"]
    np.testing.assert_array_equal(body["conv1"]["kernel"], kept)

    gone = dataclasses.replace(config, backbone="gone", out=run[0])  # That run has a width of 16.
    begun, trained = script.read_beginning(gone)
    assert trained is None and begun.architecture == script.SMOKE.architecture

    frozen = dataclasses.replace(script.SMOKE.architecture, norm="frozen")
    for wrong, words in (
        ({"weights": "x"}, "not both"),
        ({"n_frozen": 2}, "--architecture.n-frozen"),
        ({"backbone": "gone"}, "gone: is no folder"),
        ({"fine_tune_rate": -1.0}, "fine-tune-rate must be above 0"),
        ({"architecture": frozen}, r"f37072fd\.pth: the classifier has 2 of 3 stages"),
    ):
        with pytest.raises(ValueError, match=words):
            script.read_beginning(dataclasses.replace(config, **wrong))


def test_predicts_and_evaluates_with_weights(weights_file, data_dir, tmp_path, capsys):
    source = shapes.load("test", data_dir=data_dir, config=shapes.TINY)
    picture = tmp_path / "scene.png"
    cv2.imwrite(str(picture), source.read(0)[..., ::-1])
    sized = tmp_path / "sized.safetensors"
    convert = load("convert")
    names = source.classes[:3]
    convert.main(convert.Config(str(weights_file), sized, names, min_size=64, max_size=128))
    predict = load("predict")
    config = predict.Config((picture,), weights=str(sized), out=tmp_path / "found")
    rows = predict.main(config)
    assert json.loads((tmp_path / "found" / "detections.json").read_text()) == rows
    described = json.loads((tmp_path / "found" / "pictures.json").read_text())
    assert [c["name"] for c in described["categories"]] == list(names)
    # What cannot be read is named and left out.
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:99])
    config = predict.Config((picture, broken), weights=str(sized), out=tmp_path / "again")
    assert predict.main(config) == rows
    out, err = capsys.readouterr()
    assert f"Left out: {broken}" in err and out.count("scene.png ->") == 2
    with pytest.raises(ValueError, match="No picture can be read"):
        predict.main(predict.Config((broken,), weights=str(sized)))
    with pytest.raises(ValueError, match="either"):
        predict.main(predict.Config((picture,)))
    with pytest.raises(ValueError, match="Name a picture"):
        predict.main(predict.Config((), weights=str(sized)))
    with pytest.raises(ValueError, match=r"score-threshold must be within 0 to 1\. Got 50"):
        predict.main(predict.Config((picture,), weights=str(sized), score_threshold=50))

    truth = sources.to_coco(source)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(truth["images"][:2]):
        image["file_name"] = f"{i}.png"
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), source.read(i)[..., ::-1])
    kept = [image["id"] for image in truth["images"][:2]]
    truth["images"] = truth["images"][:2]
    truth["categories"] = truth["categories"][1:3]
    numbers = [c["id"] for c in truth["categories"]]
    truth["annotations"] = [
        a for a in truth["annotations"] if a["image_id"] in kept and a["category_id"] in numbers
    ]
    (tmp_path / "trainval.json").write_text(json.dumps(truth))
    evaluate = load("evaluate")
    config = evaluate.Config(
        data=str(tmp_path / "trainval.json"),
        split="trainval",
        images=tmp_path / "images",
        weights=str(sized),
        out=tmp_path / "evaluated",
    )
    found = evaluate.main(config)
    # The first class is not in the data: what is found of it is left out.
    assert list(found.per_class) == list(names[1:])


def test_conversions_that_lead_nowhere_are_said_to(run, tmp_path, capsys):
    convert = load("convert")
    with pytest.raises(ValueError, match=r"x\.onnx: files end in \.pth, \.pt, \.safetensors"):
        convert.main(convert.Config(str(run[0]), tmp_path / "x.onnx"))
    assert not (tmp_path / "x.onnx").exists()
    for suffix, noted in ((".pth", True), (".safetensors", False)):
        convert.main(convert.Config(str(run[0]), (tmp_path / "x").with_suffix(suffix)))
        assert ("only .safetensors or a folder" in capsys.readouterr().out) == noted
    with pytest.raises(ValueError, match="seems to be a Faster R-CNN of torchvision"):
        detectors.load(tmp_path / "x.pth")


def test_converts_there_and_back(weights_file, tmp_path):
    convert = load("convert")
    steps = [weights_file, tmp_path / "a.safetensors", tmp_path / "run", tmp_path / "b.pth"]
    for before, after in itertools.pairwise(steps):
        convert.main(convert.Config(str(before), after))
    first, last = files.read(weights_file)[0], files.read(steps[-1])[0]
    assert last.keys() == first.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(last[name], array)
    with pytest.raises(ValueError, match="new or empty"):
        convert.main(convert.Config(str(weights_file), tmp_path / "run"))
    with pytest.raises(ValueError, match="is the source, too"):
        convert.main(convert.Config(str(weights_file), weights_file))
    # Of a run, too, the flags hold.
    told = convert.Config(
        str(tmp_path / "run"),
        tmp_path / "told",
        classes=("x", "y", "z"),
        min_size=64,
        max_size=96,
        norm_epsilon=0.5,
    )
    assert convert.main(told).description == detectors.load(tmp_path / "told").description
    described = detectors.load(tmp_path / "told").description
    assert described.classes == ("x", "y", "z") and described.canvases == ShortSide(64, 96)
    assert described.architecture.norm_epsilon == 0.5


def test_fine_tunes_a_run_on_a_voc_folder_with_two_canvases(run, tmp_path):
    """Landscape and portrait pictures, one of them without objects; other classes."""
    draw = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(12):
        height, width = (96, 128) if i % 2 else (128, 96)
        pixels = draw.integers(0, 255, (height, width, 3), np.uint8)
        pixels[20:60, 30:70] = (0, 0, 255) if i % 3 else (255, 0, 0)
        cv2.imwrite(str(pictures / f"{i}.png"), pixels)
        name = "red" if i % 3 else "blue"
        box = "<xmin>31</xmin><ymin>21</ymin><xmax>70</xmax><ymax>60</ymax>"
        thing = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>" if i else ""
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{i}.png</filename>{size}{thing}</annotation>"
        (pictures / f"{i}.xml").write_text(text)
    out = tmp_path / "run"
    arguments = ["smoke", "--data", pictures, "--out", out, "--steps", 4, "--init-from", run[0]]
    with counted_traces() as traces:
        run_script("faster_rcnn", [*arguments, "--canvases", 96, 128, 128, 96])
    assert {key for key in traces if key[-1] is True} == {
        ("loss", (96, 128), True),
        ("loss", (128, 96), True),
    }
    assert set(traces.values()) == {1}
    variables, metadata = checkpoints.load_variables(out)
    assert metadata["classes"] == ["blue", "red"]
    begun, _ = checkpoints.load_variables(run[0])
    body, before = (v["params"]["backbone"]["body"]["conv1"]["kernel"] for v in (variables, begun))
    assert 0 < np.abs(body - before).max() < 0.01  # Four steps of 1e-4 away.
    assert variables["params"]["roi_heads"]["box_predictor"]["cls_score"]["bias"].shape == (3,)


def test_poses_need_joints(boxes_csv, tmp_path):
    arguments = ["folder", "--data", boxes_csv, "--skip-bad", "--out", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"has no keypoints.*--format coco_keypoints"):
        run_script("deep_pose", arguments)


def test_a_checkpoint_is_evaluated_on_its_own_classes(run, boxes_csv, tmp_path):
    evaluate = load("evaluate")
    config = evaluate.Config(str(boxes_csv), checkpoint=run[0], split="train", skip_bad=True)
    with pytest.raises(ValueError, match="the checkpoint does not know"):
        evaluate.main(dataclasses.replace(config, out=tmp_path))


@functools.cache
def final_parameters(out):
    variables, _ = checkpoints.load_variables(out / "checkpoints" / "last")
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(variables)]


def test_goes_on_after_a_signal_as_if_nothing_happened(run, data_dir, tmp_path, monkeypatch):
    whole, _, _ = run
    out = tmp_path / "stopped"
    arguments = ["smoke", "--data-dir", data_dir, "--out", out]
    write = logging.MetricsLog.write

    def stop_at_three(self, step, values):
        write(self, step, values)
        if step == 3 and "loss" in values:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(logging.MetricsLog, "write", stop_at_three)
    with pytest.raises(loop.Interrupted):
        run_script("faster_rcnn", arguments)
    assert not (out / "results.json").exists()
    monkeypatch.undo()
    with pytest.raises(recipes.ConfigError, match="seed: 0 -> 1"):
        run_script("faster_rcnn", [*arguments, "--seed", 1])
    # Other readers, the same batches.
    run_script("faster_rcnn", [*arguments, "--threads", 3])
    assert final_parameters(out) == final_parameters(whole)
    rows = [row for row in logging.read_rows(out) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert json.loads((out / "results.json").read_text())["seconds"] > seconds[-1]
