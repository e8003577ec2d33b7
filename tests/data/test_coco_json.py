import json

import numpy as np
import pytest

from jaxdet.data import coco_json
from jaxdet.data.coco_masks import segment_mask
from jaxdet.data.records import DataError, Polygons
from jaxdet.data.reports import Report
from jaxdet.geometry import rle


@pytest.fixture
def coco(tmp_path, write_coco, write_picture):
    """Path of a good file with one object, and its contents to spoil."""
    write_picture(tmp_path / "images" / "a.png")
    write_picture(tmp_path / "images" / "b.png")
    path = tmp_path / "annotations" / "instances.json"
    data = write_coco(path, {"a.png": [(5, 6, 10.5, 20, 7)], "b.png": []})
    return path, data


def rewrite(path, data):
    path.write_text(json.dumps(data))


def test_by_hand(coco):
    source = coco_json.read_coco(coco[0])
    first, second = source.annotations
    np.testing.assert_array_equal(first.boxes, [[5, 6, 15.5, 26]])
    np.testing.assert_array_equal(first.labels, [2])  # Category 7 is the second of 3 and 7.
    assert source.classes == ("cat", "dog") and source.category_ids == (3, 7)
    assert (first.image_id, first.size, first.name) == (100, (40, 60), "a.png")
    assert second.boxes.shape == (0, 4) and second.labels.shape == (0,)
    assert source[1][0].shape == (40, 60, 3)


def test_crowd_and_mask_area(coco):
    path, data = coco
    data["annotations"][0] |= {
        "iscrowd": 1,
        "area": 12.5,
        "segmentation": {"counts": [5, 3, 2392], "size": [40, 60]},
    }
    rewrite(path, data)
    annotation = coco_json.read_coco(path).annotations[0]
    assert annotation.crowd.tolist() == [True] and annotation.areas.tolist() == [12.5]


def test_given_classes_set_the_labels(coco):
    source = coco_json.read_coco(coco[0], classes=("bird", "dog", "cat"))
    assert source.annotations[0].labels.tolist() == [2]
    assert source.category_ids == (8, 7, 3)  # Nothing else has 8.
    with pytest.raises(DataError, match=r"annotations\[0\].category_id = 7 is 'dog'"):
        coco_json.read_coco(coco[0], classes=("cat",))


def test_clips_and_drops_with_a_note(coco):
    path, data = coco
    row = data["annotations"][0]
    for box in ([50, 30, 30, 30], [1, 1, 0, 5], [-20, 0, 10, 10]):
        data["annotations"].append(row | {"bbox": box, "id": 1 + len(data["annotations"])})
    rewrite(path, data)
    source = coco_json.read_coco(path)
    np.testing.assert_array_equal(source.annotations[0].boxes[1:], [[50, 30, 60, 40]])
    empty, clipped = source.notes
    second, fourth = (f"instances.json: annotations[{i}]" for i in (2, 3))
    assert empty == f"Boxes without area, left out: 2 ({second}, {fourth})."
    assert clipped.endswith("clipped: 1 (instances.json: annotations[1]).")


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("images", {"file_name": "gone.png"}, r"images\[0\].file_name = 'gone.png'.*no such"),
        ("images", {"height": None}, r"images\[0\].height is missing"),
        ("images", {"width": "60"}, r"images\[0\].width = '60' is no whole number"),
        ("images", {"width": 0}, r"images\[0\]: height 40 and width 0"),
        ("images", {"id": 101}, r"images\[1\].id = 101 is taken"),
        ("annotations", {"bbox": [1, 2, 3]}, r"annotations\[0\].bbox = \[1, 2, 3\] must be 4"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, r"bbox = .*nan"),
        ("annotations", {"bbox": None}, r"annotations\[0\].bbox is missing"),
        ("annotations", {"bbox": [9, 9, -5, 20]}, r"\[0\].bbox: .*negative. Got -5 and 20"),
        ("annotations", {"category_id": 5}, r"category_id = 5 is not in categories"),
        ("annotations", {"image_id": 1}, r"annotations\[0\].image_id = 1 is no image"),
        ("categories", {"id": 7}, r"categories\[1\]: id 7"),
    ],
)
def test_faults_name_the_field(coco, table, row, message):
    path, data = coco
    data[table][0] |= row
    rewrite(path, data)
    with pytest.raises(DataError, match=message) as error:
        coco_json.read_coco(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other.json: (is not JSON|has no list)"):
        coco_json.read_coco(path)


def test_pictures_by_split_name_or_argument(tmp_path, write_coco, write_picture):
    """The same file name in two folders: the JSON's name decides, or the argument, or nobody."""
    wanted = write_picture(tmp_path / "val2017" / "a.png")
    other = write_picture(tmp_path / "train2017" / "a.png")
    write_coco(tmp_path / "annotations" / "instances_val2017.json", {"a.png": []})
    write_coco(tmp_path / "annotations" / "all.json", {"a.png": []})
    named = coco_json.read_coco(tmp_path / "annotations" / "instances_val2017.json")
    np.testing.assert_array_equal(named[0][0], wanted)
    all_json = tmp_path / "annotations" / "all.json"
    with pytest.raises(DataError, match=r"is both in .*train2017 and in .*val2017"):
        coco_json.read_coco(all_json)
    told = coco_json.read_coco(all_json, images=tmp_path / "train2017")
    np.testing.assert_array_equal(told[0][0], other)


def test_masks_of_every_spelling(coco):
    path, data = coco
    row = data["annotations"][0]
    polygon = [[5, 6, 15, 6, 15, 26, 5, 26]]
    off, on = 5 * 40 + 6, 20  # Column 5 begins with 6 pixels that are off.
    counts = [off, on, *[20, 20] * 9, 2400 - 15 * 40 + 14]
    runs = {"size": [40, 60], "counts": counts}
    text = rle.encode(segment_mask(Polygons((np.array(polygon[0]).reshape(-1, 2),)), (40, 60)))
    for value in (polygon, runs, text, None, []):
        data["annotations"].append(
            row | {"id": 9 + len(data["annotations"]), "segmentation": value}
        )
    rewrite(path, data)
    annotation = coco_json.read_coco(path).annotations[0]
    want = np.zeros((40, 60), bool)
    want[6:26, 5:15] = True
    assert isinstance(annotation.segments[1], Polygons)
    for segment in annotation.segments[1:4]:
        np.testing.assert_array_equal(segment_mask(segment, (40, 60)), want)
    assert annotation.segments[0] is None and annotation.segments[4:] == (None, None)


def test_a_broken_mask_names_its_field(coco):
    path, data = coco
    data["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6], [1, 2, 3]]
    rewrite(path, data)
    with pytest.raises(DataError, match=r"annotations\[0\].segmentation\[1\] must be x, y"):
        coco_json.read_coco(path)


def test_keypoints(coco):
    path, data = coco
    data["categories"][1]["keypoints"] = ["nose", "left_eye", "right_eye"]
    data["annotations"][0]["keypoints"] = [6, 7, 2, 8, 9, 1, 0, 0, 0]
    data["annotations"].append(data["annotations"][0] | {"id": 9, "category_id": 3})
    del data["annotations"][1]["keypoints"]
    rewrite(path, data)
    source = coco_json.read_coco(path)
    points = source.annotations[0].keypoints
    np.testing.assert_array_equal(points[0], [[6, 7, 2], [8, 9, 1], [0, 0, 0]])
    assert not points[1].any() and source.annotations[1].keypoints.shape == (0, 3, 3)
    assert source.keypoint_names == ("nose", "left_eye", "right_eye")
    assert source.keypoint_pairs == ((1, 2),)


@pytest.mark.parametrize("bad", [[1, 2, 3], [1, 2, 3] * 2, [1, 2, float("inf")] * 3, ["a"] * 9, 3])
def test_faulty_keypoints(coco, bad):
    path, data = coco
    data["categories"][1]["keypoints"] = ["a", "b", "c"]
    data["annotations"][0]["keypoints"] = bad
    rewrite(path, data)
    with pytest.raises(DataError, match=r"annotations\[0\].keypoints"):
        coco_json.read_coco(path)


def test_pairs_by_name():
    names = ["nose", "right_ear", "left_ear", "tail", "left_hoof", "LeftWing", "rightwing"]
    assert coco_json.left_right_pairs(names) == ((1, 2), (5, 6))
    names = [
        "L_Eye",
        "R_Eye",
        "hip_l",
        "hip_r",
        "LKnee",
        "RKnee",
        "footL",
        "footR",
        "Left",
        "Right",
    ]
    assert coco_json.left_right_pairs(names) == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    assert coco_json.left_right_pairs(["Lid", "Rid", "al", "ar", "l", "r"]) == ()


def test_captions_beside_and_alone(coco, tmp_path):
    path, data = coco
    rows = [{"id": i, "image_id": 100, "caption": f"A cat {i}."} for i in range(2)]
    elsewhere = {
        "id": 9,
        "image_id": 12345,
        "caption": "Of a picture that is not in the instances.",
    }
    captions = {"images": data["images"], "annotations": [*rows, elsewhere]}
    path = path.rename(path.with_name("instances_val2017.json"))
    rewrite(path.with_name("captions_val2017.json"), captions)
    source = coco_json.read_coco(path)
    assert [a.captions for a in source.annotations] == [("A cat 0.", "A cat 1."), ()]
    rewrite(path.with_name("captions_val2017.json"), captions | {"annotations": rows})
    alone = coco_json.read_coco(path.with_name("captions_val2017.json"))
    assert alone.classes == () and alone.annotations[0].captions == ("A cat 0.", "A cat 1.")


def test_faults_cost_their_picture_only(coco):
    path, data = coco
    row = data["annotations"][0]
    data["annotations"] += [row | {"id": 2, "image_id": 101, "bbox": [1, 1, 5]}]
    data["annotations"] += [row | {"id": 3, "image_id": 101, "category_id": 5}]
    rewrite(path, data)
    report = Report()
    source = coco_json.read_coco(path, report=report)
    assert [a.name for a in source.annotations] == ["a.png"] and report.bad == {101}
    assert len(report.faults) == 2
    assert source[0][1].image_id == 100 and source.read.paths[0].name == "a.png"


def test_taken_ids_and_names(coco):
    path, data = coco
    data["annotations"].append(data["annotations"][0])
    rewrite(path, data)
    (note,) = coco_json.read_coco(path).notes
    assert note == f"{coco_json.SAME_ID}: 1 (instances.json: annotations[1].id = 1)."
    data["images"][1]["file_name"] = "a.png"
    rewrite(path, data)
    with pytest.raises(DataError, match=r"images\[1\].file_name = 'a.png' is that of images\[0\]"):
        coco_json.read_coco(path)


def test_enormous_pictures_are_refused_unopened(coco):
    path, data = coco
    data["images"][0] |= {"height": 10**6, "width": 10**6}
    rewrite(path, data)
    with pytest.raises(DataError, match=r"images\[0\]: height 1000000 and width 1000000 must be"):
        coco_json.read_coco(path)
