"""Scripts look at data, convert it, and leave out what is bad if they are told to."""

import cv2
import numpy as np
import pytest
from experiment_scripts import load


def test_checks_data(boxes_csv, tmp_path, capsys):
    script = load("check_data")
    checked = script.main(script.Config(data=str(boxes_csv), out=tmp_path / "check"))
    assert len(checked["boxes"].report.faults) == 2 and len(checked["boxes"].source) == 5
    findings = (tmp_path / "check" / "findings.txt").read_text()
    assert "boxes.csv: line 3: x2 = 'x' is no finite number" in findings
    assert "0.png: the picture is cut off" in findings
    assert cv2.imread(str(tmp_path / "check" / "boxes.png")) is not None
    printed = capsys.readouterr().out
    assert "== boxes: 2 faults" in printed and "recall at 0.5" in printed


def test_converts_data(boxes_csv, tmp_path):
    script, check = load("convert_data"), load("check_data")
    with pytest.raises(ValueError, match="--skip-bad"):
        script.main(script.Config(data=str(boxes_csv), out=tmp_path / "no"))
    assert not (tmp_path / "no").exists()
    for to in ("coco", "array_record"):
        config = script.Config(data=str(boxes_csv), out=tmp_path / to, to=to, skip_bad=True)
        script.main(config)
        with pytest.raises(FileExistsError, match=r"is there already\. Name another"):
            script.main(config)
        checked = check.main(check.Config(data=str(tmp_path / to), out=tmp_path / "check"))
        ((source, report),) = checked.values()
        assert not report.faults and len(source) == 4
        np.testing.assert_array_equal(source.annotations[0].boxes, [[5, 5, 25, 30]])


def test_converts_each_picture_once(tmp_path, capsys):
    """VOC lists the pictures of train and val a second time, as trainval."""
    lists = tmp_path / "VOC" / "ImageSets" / "Main"
    for folder in (lists, tmp_path / "VOC" / "Annotations", tmp_path / "VOC" / "JPEGImages"):
        folder.mkdir(parents=True)
    xml = (
        "<annotation><size><width>8</width><height>8</height></size><object><name>cat</name><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    for stem in "ab":
        (tmp_path / "VOC" / "Annotations" / f"{stem}.xml").write_text(xml)
        cv2.imwrite(str(tmp_path / "VOC" / "JPEGImages" / f"{stem}.jpg"), np.zeros((8, 8, 3)))
    for part, text in (("train", "a\n"), ("val", "b\n"), ("trainval", "a\nb\n")):
        (lists / f"{part}.txt").write_text(text)
    script = load("convert_data")
    parts = script.main(script.Config(data=str(tmp_path / "VOC"), out=tmp_path / "out"))
    assert {part: len(source) for part, source in parts.items()} == {"train": 1, "val": 1}
    assert "trainval: left out" in capsys.readouterr().out
    (lists / "val.txt").write_text("")  # Picture b is in trainval alone.
    parts = script.main(script.Config(data=str(tmp_path / "VOC"), out=tmp_path / "again"))
    assert len(parts["trainval"]) == 2
    (tmp_path / "third" / "val").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="val: is there already"):
        script.main(script.Config(data=str(tmp_path / "VOC"), out=tmp_path / "third"))
    assert not (tmp_path / "third" / "annotations").exists()


def test_skips_bad_pictures_and_says_so(boxes_csv, tmp_path, capsys):
    evaluate = load("evaluate")
    (tmp_path / "results.json").write_text("[]")
    common = {"data": str(boxes_csv), "results": tmp_path / "results.json", "split": "train"}
    with pytest.raises(ValueError, match="--skip-bad"):
        evaluate.main(evaluate.Config(**common, out=tmp_path / "out"))
    evaluate.main(evaluate.Config(**common, out=tmp_path / "out", skip_bad=True))
    assert "Left out for 2 faults: 2 pictures." in capsys.readouterr().out
