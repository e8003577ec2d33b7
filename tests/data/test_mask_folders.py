import pickle

import cv2
import numpy as np
import pytest

from jaxdet.data import mask_folders
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report


def write_mask(path, *, size=(40, 60), box=(5, 6, 15, 20), channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((*size, channels), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    cv2.imwrite(str(path), mask)


def read(root, **options):
    report = options.setdefault("report", Report())
    found = mask_folders.find_masked(root, report)
    classes = options.pop("classes", None) or mask_folders.class_names(found)
    return mask_folders.read_masks("test", found, classes=classes, **options)


def test_a_folder_for_each_picture(tmp_path, write_picture):
    write_picture(tmp_path / "images" / "deep" / "a.JPG")
    write_mask(tmp_path / "masks" / "deep" / "a" / "red_cat_1.png")
    write_mask(tmp_path / "masks" / "deep" / "a" / "dog_1.png", box=(0, 0, 60, 40), channels=3)
    source = read(tmp_path)
    assert source.classes == ("dog", "red_cat")
    a = source.annotations[0]
    np.testing.assert_array_equal(a.boxes, [[0, 0, 60, 40], [5, 6, 15, 20]])
    np.testing.assert_array_equal(a.areas, [2400, 140])
    assert a.segments[1].mask[6:20, 5:15].all() and a.segments[1].mask.sum() == 140
    again = pickle.loads(pickle.dumps(source))
    assert again.annotations[0].segments[0].mask.all() and again[0][0].shape == (40, 60, 3)


def test_as_in_the_data_science_bowl(tmp_path, write_picture):
    for name in ("0f", "1e"):
        write_picture(tmp_path / "stage1_train" / name / "images" / f"{name}.png")
        write_mask(tmp_path / "stage1_train" / name / "masks" / "ab12.png")
    write_mask(tmp_path / "stage1_train" / "1e" / "masks" / "cd34.png", box=(0, 0, 2, 2))
    source = read(tmp_path)
    assert source.classes == ("object",) and [len(a.labels) for a in source.annotations] == [1, 2]
    assert [a.name for a in source.annotations] == ["0f.png", "1e.png"]


def test_pictures_without_masks(tmp_path, write_picture):
    """An empty folder says that nothing is there; no folder says nothing."""
    for name in "abc":
        write_picture(tmp_path / "images" / f"{name}.png")
    write_mask(tmp_path / "masks" / "a" / "cat_1.png")
    (tmp_path / "masks" / "b").mkdir()
    source = read(tmp_path)
    assert [len(a.labels) for a in source.annotations] == [1, 0]
    assert source.notes == (f"{mask_folders.UNMASKED}: 1 (c.png).",)


def test_empty_masks_are_left_out_with_a_note(tmp_path, write_picture):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a" / "cat_1.png", box=(0, 0, 0, 0))
    source = read(tmp_path)
    assert source.annotations[0].boxes.shape == (0, 4)
    assert source.notes == ("Boxes without area, left out: 1 (cat_1.png).",)


def test_faults(tmp_path, write_picture):
    for name in "abc":
        write_picture(tmp_path / "images" / f"{name}.png")
    write_mask(tmp_path / "masks" / "a" / "cat_1.png", size=(41, 60))
    write_mask(tmp_path / "masks" / "a" / "cow_1.png")
    write_mask(tmp_path / "masks" / "b" / "cat.png")
    write_mask(tmp_path / "masks" / "c" / "cat_1.png")
    (tmp_path / "masks" / "c" / "cat_2.png").write_bytes(b"no picture")
    write_mask(tmp_path / "masks" / "d" / "cat_1.png")
    report = Report()
    assert len(read(tmp_path, report=report, classes=("cat",))) == 0
    wanted = ["d: 0 pictures have the name", "the mask is 41 x 60", "'cow' is none of the classes"]
    wanted += ["no class before a '_'", "cat_2.png"]
    for text, fault in zip(wanted, report.faults, strict=True):
        assert text in fault


def test_two_pictures_for_one_folder_of_masks(tmp_path, write_picture):
    for name in "ab":
        write_picture(tmp_path / "images" / f"{name}.png")
    write_mask(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match="has 2 pictures for the masks beside it"):
        report = Report()
        mask_folders.find_masked(tmp_path, report)
        report.stop()
