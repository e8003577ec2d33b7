import pathlib
import pickle
import shutil

import numpy as np
import pytest

from jaxdet.data import class_folders, sources
from jaxdet.data.records import DataError


@pytest.fixture
def write_folders(tmp_path, write_picture):
    """Writes a small picture at each path, `write_folders("train/cat/a.png", ...)`."""

    def write(*paths):
        for i, path in enumerate(paths):
            write_picture(tmp_path / path, height=20 + i, width=30)
        return tmp_path

    return write


def names(source):
    return [(a.name, source.classes[a.labels[0] - 1]) for a in source.annotations]


def test_parts_with_a_folder_for_each_class(write_folders):
    root = write_folders("train/dog/a.png", "train/cat/deep/b.JPG", "val/dog/c.png")
    train = sources.open_folder(root, split="train")
    assert train.classes == ("cat", "dog")
    assert names(train) == [("cat/deep/b.JPG", "cat"), ("dog/a.png", "dog")]
    for annotation, height in zip(train.annotations, (21, 20), strict=True):
        assert annotation.size == (height, 30)
        np.testing.assert_array_equal(annotation.boxes, [[0, 0, 30, height]])
        assert not annotation.crowd.any() and not annotation.difficult.any()
    assert pickle.loads(pickle.dumps(train))[0][0].shape == (21, 30, 3)
    # Labels are those of all parts, also where a class is not in one.
    val = sources.open_folder(root, split="val")
    assert val.classes == train.classes and names(val) == [("dog/c.png", "dog")]
    assert "whole pictures" in val.notes[0]


def test_pictures_are_turned_as_they_are_shown(tmp_path, write_turned):
    write_turned(tmp_path / "cat" / "a.jpg")
    source = sources.open_folder(tmp_path, split="train", format="folders")
    pixels, a = source[0]
    assert a.size == (60, 40) and pixels[11:19, 6:14].min() > 200


def test_other_folders_beside_parts(write_folders, tmp_path):
    root = write_folders("train/cat/a.png", "val/cat/b.png", "val/dog/c.png")
    write_folders("__MACOSX/train/cat/._a.png")
    (root / "labels").mkdir()
    assert sources.open_folder(root, split="val").classes == ("cat", "dog")
    write_folders("validation/cat/d.png")
    with pytest.raises(DataError, match="validation: is not the only folder for 'val'"):
        sources.open_folder(root, split="val")
    shutil.rmtree(root / "validation")
    write_folders("copies/cat/a.png")
    with pytest.raises(DataError, match=r"train, val are parts with .*, but copies are not\. Move"):
        sources.open_folder(root, split="val")


def test_classes_may_have_a_part_s_word_in_their_name(write_folders):
    root = write_folders("bullet_train/a.png", "test_tube/a.png", "bus/deep/a.png")
    found = class_folders.find_folders(root)
    assert class_folders.class_names(found) == ("bullet_train", "bus", "test_tube")


def test_one_part_is_divided(write_folders):
    root = write_folders(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)))
    train, val = (sources.open_folder(root, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2)
    assert not set(names(train)) & set(names(val))


def test_a_class_may_be_called_as_a_part(write_folders):
    root = write_folders("train/a.png", "bus/a.png")
    assert class_folders.class_names(class_folders.find_folders(root)) == ("bus", "train")


def test_one_folder_is_taken_when_asked_for_only(write_folders):
    root = write_folders("images/a.png")
    with pytest.raises(DataError, match="no data set"):
        sources.open_folder(root, split="train")
    source = sources.open_folder(root, split="train", format="folders")
    assert source.classes == ("images",)


def test_faults_name_file_and_folder(write_folders):
    root = write_folders("cat/a.png", "dog/b.png")
    with pytest.raises(DataError, match=r"dog: is none of the classes cat, horse"):
        sources.open_folder(root, split="train", classes=["cat", "horse"])
    pathlib.Path(root / "cat" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png: not a picture"):
        sources.open_folder(root, split="train")
