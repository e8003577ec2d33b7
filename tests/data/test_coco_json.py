import json

import numpy as np
import pytest

from jaxdet.data import coco_json
from jaxdet.data.records import DataError


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
        "segmentation": {"counts": [0, 3], "size": [40, 60]},
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
        data["annotations"].append(row | {"bbox": box})
    rewrite(path, data)
    source = coco_json.read_coco(path)
    np.testing.assert_array_equal(source.annotations[0].boxes[1:], [[50, 30, 60, 40]])
    empty, clipped = source.notes
    assert empty == "Boxes without area, left out: 2 (a.png, a.png)."
    assert clipped.endswith("clipped: 1.")


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("images", {"file_name": "gone.png"}, r"images\[0\].file_name = 'gone.png'.*no such"),
        ("images", {"height": None}, r"images\[0\].height is missing"),
        ("images", {"width": "60"}, r"images\[0\].width = '60' is no int"),
        ("images", {"width": 0}, r"images\[0\]: height 40 and width 0"),
        ("images", {"id": 101}, r"images\[1\].id = 101 is taken"),
        ("annotations", {"bbox": [1, 2, 3]}, r"annotations\[0\].bbox = \[1, 2, 3\] must be 4"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, r"bbox = .*nan"),
        ("annotations", {"bbox": None}, r"annotations\[0\].bbox is missing"),
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
