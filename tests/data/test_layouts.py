import json

import cv2
import numpy as np
import pytest
from small_sets import FORMATS, SHAPES, extent

from jaxdet.data import arrays, coco_masks, coco_write, layouts, sources
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report
from jaxdet.geometry import rle
from jaxdet.metrics import coco

MASKED = {"coco", "yolo polygons", "via", "masks"}


def read(path, **options):
    """The one part of a data set, all of it."""
    report = Report()
    parts = layouts.find_parts(path, layouts.Options(report), **options)
    (part,) = parts.values()
    source = part()
    report.stop()
    return source


def assert_same(source, tolerance=1.0, *, masked=True):
    """Whether a source holds `SHAPES`, within a pixel."""
    assert source.classes == ("cat", "dog")
    assert [a.name for a in source.annotations] == list(SHAPES)
    for i, (annotation, objects) in enumerate(
        zip(source.annotations, SHAPES.values(), strict=True)
    ):
        assert annotation.size == (40, 60) and source[i][0].shape == (40, 60, 3)
        want = np.array([extent(outline) for _, outline in objects]).reshape(-1, 4)
        np.testing.assert_allclose(annotation.boxes, want, atol=tolerance)
        assert [source.classes[label - 1] for label in annotation.labels] == [k for k, _ in objects]
        for segment, (_, outline) in zip(annotation.segments or (), objects, strict=masked):
            drawn = np.zeros((40, 60), np.uint8)
            cv2.fillPoly(drawn, [np.array(outline)], 1)
            wrong = coco_masks.segment_mask(segment, (40, 60)) != drawn
            # Edges may be a pixel off: inner pixels may not.
            assert not (wrong & (cv2.erode(drawn, np.ones((3, 3))) > 0)).any()
            assert not (wrong & (cv2.dilate(drawn, np.ones((3, 3))) == 0)).any()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_recognised_and_comes_back(tmp_path, write_set, kind):
    write_set(tmp_path / "set", kind)
    source = read(tmp_path / "set")
    masked = any(a.segments for a in source.annotations)
    assert masked == (kind in MASKED)
    assert_same(source, 0.01 if kind != "masks" else 1.0, masked=masked)
    named = read(tmp_path / "set", format=kind.split()[0])
    assert named.classes == source.classes and len(named) == len(source)


@pytest.mark.parametrize("kind", FORMATS)
def test_written_again_it_is_the_same(tmp_path, write_set, kind):
    write_set(tmp_path / "set", kind)
    source = read(tmp_path / "set")
    coco_write.write_coco({"train": source}, tmp_path / "coco")
    folder = arrays.write_arrays({"train": source}, tmp_path / "records")
    for path in (tmp_path / "coco", folder):
        again = read(path)
        assert_same(again, masked=kind in MASKED)
        for a, b in zip(source.annotations, again.annotations, strict=True):
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
            np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(source[0][0], again[0][0])


@pytest.mark.parametrize("kind", FORMATS)
def test_ground_truth_against_itself_is_perfect(tmp_path, write_set, kind):
    write_set(tmp_path / "set", kind)
    truth = sources.to_coco(read(tmp_path / "set"))
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for row in truth["annotations"]
    ]
    assert coco.evaluate_boxes(truth, rows).metrics["AP"] == pytest.approx(1)
    if kind in MASKED:
        for row, annotation in zip(rows, truth["annotations"], strict=True):
            segment = coco_masks.parse_segmentation(annotation["segmentation"], (40, 60), "")
            row["segmentation"] = rle.encode(coco_masks.segment_mask(segment, (40, 60)))
        assert coco.evaluate_masks(truth, rows).metrics["AP"] == pytest.approx(1)


def test_a_format_that_is_not_there(tmp_path, write_set):
    write_set(tmp_path / "set", "csv")
    with pytest.raises(DataError, match="no data set of the format 'yolo'"):
        read(tmp_path / "set", format="yolo")
    with pytest.raises(ValueError, match="format must be one of coco, coco_keypoints, voc"):
        read(tmp_path / "set", format="pascal")


def test_a_wrong_guess_is_a_flag_away(tmp_path, write_set):
    """A folder that is two data sets at once: XML beside pictures goes first, CSV on request."""
    write_set(tmp_path / "set", "csv")
    text = "<annotation><size><width>60</width><height>40</height></size></annotation>"
    (tmp_path / "set" / "pictures" / "a.xml").write_text(text)
    assert len(read(tmp_path / "set")) == 1
    assert_same(read(tmp_path / "set", format="csv"), masked=False)


def test_balloon_layout(tmp_path, write_set):
    """train/ and val/ with a JSON each, as Matterport's."""
    for part in ("train", "val"):
        write_set(tmp_path / part, "via")
    parts = layouts.find_parts(tmp_path, layouts.Options(Report()))
    assert sorted(parts) == ["train", "val"]
    assert_same(parts["val"]())


def test_labels_are_the_same_in_all_parts(tmp_path, write_set):
    """The first part has no cat, so its labels alone would begin with the dog."""
    for part in ("train", "val"):
        write_set(tmp_path / part, "via")
    path = tmp_path / "train" / "via_region_data.json"
    data = json.loads(path.read_text())
    del data["a.png123"]["regions"]["0"]
    path.write_text(json.dumps(data))
    parts = layouts.find_parts(tmp_path, layouts.Options(Report()))
    train = parts["train"]()
    assert train.classes == ("cat", "dog") and train.annotations[0].labels.tolist() == [2]


def test_a_prepared_set_is_found_below_a_folder_that_is_none_itself(tmp_path, write_set):
    write_set(tmp_path / "set", "coco")
    source = read(tmp_path / "set")
    for name in ("a", "b"):
        written = arrays.write_arrays({"train": source}, tmp_path / name)
        assert read(tmp_path / name).classes == source.classes
        assert len(read(written.parent, format="tfds")) == len(source)
    (tmp_path / "b" / "converted").rename(tmp_path / "a" / "other")
    with pytest.raises(DataError, match=r"name one of .*/converted, .*/other"):
        read(tmp_path / "a")
    (tmp_path / "a" / "other").rename(tmp_path / "set" / "other")
    assert read(tmp_path / "set").name == source.name


def test_joints_lie_beside_boxes_of_all_classes(tmp_path, write_coco, write_picture):
    """A folder of COCO's: the boxes are read, the joints where they are asked for."""
    write_picture(tmp_path / "train2017" / "a.png")
    folder = tmp_path / "annotations"
    folder.mkdir()
    write_coco(folder / "instances_train2017.json", {"a.png": [(1, 1, 5, 5, 3)]})
    data = json.loads((folder / "instances_train2017.json").read_text())
    data["categories"] = [{"id": 3, "name": "person", "keypoints": ["nose"], "skeleton": []}]
    data["annotations"][0] |= {"keypoints": [2, 2, 2], "num_keypoints": 1}
    (folder / "person_keypoints_train2017.json").write_text(json.dumps(data))
    boxes = read(tmp_path)
    assert boxes.keypoint_names == ()
    assert any("not read: --format coco_keypoints" in note for note in boxes.notes)
    assert read(tmp_path, format="coco_keypoints").keypoint_names == ("nose",)
