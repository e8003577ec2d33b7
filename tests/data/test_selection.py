"""Which data a script reads, by its flags."""

import dataclasses

import numpy as np
import pytest

from jaxdet.data import selection
from jaxdet.data.records import DataError
from jaxdet.data.selection import Selection


@pytest.fixture
def folders(write_coco, write_picture, tmp_path):
    """Two sets of three pictures: a cat and a dog, a dog, nothing."""
    objects = {
        "a.png": [(5, 5, 9, 9, 3), (20, 5, 9, 9, 7)],
        "b.png": [(1, 1, 8, 8, 7)],
        "c.png": [],
    }
    for name in ("one", "two"):
        for part in ("train", "val"):
            write_coco(tmp_path / name / "annotations" / f"instances_{part}.json", objects)
        for picture in objects:
            write_picture(tmp_path / name / picture)
    return tmp_path / "one", tmp_path / "two"


def test_opens_generated_scenes(tmp_path):
    chosen = Selection(scenes="tiny", data_dir=tmp_path)
    train, rates = selection.open_training(chosen)
    assert len(train) == 64 and rates is None
    assert len(selection.open_split(chosen, "val", classes=train.classes)) == 16


def test_opens_all_that_a_run_reads(folders, tmp_path):
    chosen = Selection(data=str(folders[0]), sampling="class_balanced")
    train, rates, val = selection.open_parts(chosen)
    want, want_rates = selection.open_training(chosen)
    assert train.annotations[0].name == want.annotations[0].name and len(train) == 3
    np.testing.assert_array_equal(rates, want_rates)
    assert val.name != train.name and val.classes == train.classes


def test_every_picture_once_by_itself_rare_ones_more_often(folders):
    one, _ = folders
    chosen = Selection(data=str(one))
    train, rates = selection.open_training(chosen)
    assert len(train) == 3 and rates is None
    rare = dataclasses.replace(chosen, sampling="repeat_factor", repeat_threshold=0.9)
    _, rates = selection.open_training(rare)
    # Cats are on one of three pictures, dogs on two; a picture takes its rarest class's rate.
    np.testing.assert_allclose(rates, np.sqrt([0.9 * 3, 0.9 * 3 / 2, 1]), rtol=1e-6)
    _, rates = selection.open_training(dataclasses.replace(chosen, sampling="class_balanced"))
    assert rates[0] > rates[1] > rates[2]


def test_mixes_further_sets_by_weight(folders):
    one, two = map(str, folders)
    chosen = Selection(data=one, more_data=(two,))
    train, rates = selection.open_training(chosen)
    assert len(train) == 6 and rates is None
    _, rates = selection.open_training(dataclasses.replace(chosen, data_weights=(3.0, 1.0)))
    np.testing.assert_allclose(rates, [1.5] * 3 + [0.5] * 3)


def test_faults_stop_or_are_left_out(folders):
    one, _ = folders
    picture = one / "b.png"
    picture.write_bytes(picture.read_bytes()[:60])
    chosen = Selection(data=str(one))
    with pytest.raises(DataError, match=picture.name):
        selection.open_training(chosen)
    train, _ = selection.open_training(dataclasses.replace(chosen, skip_bad=True))
    assert len(train) == 2


def test_pictures_of_one_object_and_objects_cut_out(folders):
    one, _ = folders
    chosen = Selection(data=str(one))
    train, _ = selection.open_training(dataclasses.replace(chosen, n_objects=1))
    assert [a.name for a in train.annotations] == ["b.png"]
    train, rates = selection.open_training(
        dataclasses.replace(chosen, crops=0.0, sampling="class_balanced")
    )
    assert [a.size for a in train.annotations] == [(9, 9), (9, 9), (8, 8)]
    assert len(rates) == 3 and rates[0] == 2 * rates[1]
