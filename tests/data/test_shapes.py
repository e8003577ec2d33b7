import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdet.data import scenes, shapes

KILLED_WHILE_DRAWING = """
import os, pathlib, sys
from jaxdet.data import shapes

draw = shapes.draw
shapes.draw = lambda split, index, **k: draw(split, index, **k) if index < 9 else os._exit(7)
shapes.prepare(pathlib.Path(sys.argv[1]), config=shapes.TINY)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    shapes.prepare(folder, config=shapes.TINY)
    return folder


@pytest.fixture(scope="module")
def source(data_dir):
    return shapes.load("train", data_dir=data_dir, config=shapes.TINY)


def test_splits_have_their_sizes(data_dir):
    sizes = [len(shapes.load(s, data_dir=data_dir, config=shapes.TINY)) for s in shapes.SPLITS]
    assert sizes == [64, 16, 16]
    assert (shapes.FULL.train, shapes.FULL.validation, shapes.FULL.test) == (4000, 256, 512)


def test_record_is_the_scene_of_its_index(source):
    assert source.classes == scenes.CLASSES
    for index in (0, 1, 40, 63):
        scene, annotation = shapes.draw("train", index), source.annotations[index]
        assert annotation.image_id == index and annotation.size == (128, 128)
        for field in ("boxes", "labels", "crowd", "difficult"):
            got, want = getattr(annotation, field), getattr(scene, field)
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
        np.testing.assert_array_equal(annotation.areas, scene.masks.sum((1, 2)))


def test_pictures_lose_little_and_keep_red_red(source):
    for index in range(0, 64, 8):
        pixels, want = source.read(index), shapes.draw("train", index).image
        assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
        assert np.mean(np.abs(pixels.astype(float) - want)) < 5


def test_splits_and_seeds_differ():
    configs = [dataclasses.replace(shapes.FULL, seed=seed) for seed in range(3)]
    pictures = [
        shapes.draw(split, index, config=config).image.tobytes()
        for split in shapes.SPLITS
        for index in range(4)
        for config in configs
    ]
    assert len(set(pictures)) == len(pictures)


@pytest.fixture(scope="module")
def single():
    return [
        shapes.draw(split, index, config=shapes.SINGLE)
        for split in shapes.SPLITS
        for index in range(100)
    ]


def test_single_scenes_have_one_object_that_counts(single):
    for scene in single:
        assert len(scene.labels) == 1 and not scene.crowd.any() and not scene.difficult.any()
    counts = np.bincount([scene.labels[0] for scene in single], minlength=9)[1:]
    assert np.all(np.abs(counts - 300 / 8) < 4 * np.sqrt(300 / 8))
    sides = [np.sqrt(np.prod(scene.boxes[0, 2:] - scene.boxes[0, :2])) for scene in single]
    assert 60 < np.median(sides) < 80 and max(sides) > 100


def test_colours_of_single_objects_do_not_tell_the_class(single):
    colours = np.array([scene.image[scene.masks[0]].mean(axis=0) for scene in single])
    labels = np.array([scene.labels[0] for scene in single])
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    nearest = np.argmin(distance + np.diag(np.full(len(single), np.inf)), axis=1)
    hits = np.mean(labels[nearest] == labels)
    assert abs(hits - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / len(single))


def test_small_single_drawing_is_the_beginning_of_the_large_one(tmp_path):
    source = shapes.load("test", data_dir=tmp_path, config=shapes.SINGLE_TINY)
    assert len(source) == 16
    for index, annotation in enumerate(source.annotations):
        want = shapes.draw("test", index, config=shapes.SINGLE)
        np.testing.assert_array_equal(annotation.boxes, want.boxes)


def test_masks_keypoints_and_captions_come_back(data_dir):
    builder = tfds.builder_from_directory(shapes.prepare(data_dir, config=shapes.TINY))
    rows = builder.as_data_source("test")
    for index in range(16):
        row, scene = rows[index], shapes.draw("test", index)
        masks = np.array(row["masks"]).reshape(-1, 128, 128)
        np.testing.assert_array_equal(masks == 255, scene.masks)
        np.testing.assert_array_equal(row["keypoints"], scene.keypoints)
        assert row["caption"].decode() == scene.caption


def test_annotations_have_masks_keypoints_and_captions(source):
    states = set()
    for index in range(64):
        scene, a = shapes.draw("train", index), source.annotations[index]
        for segment, mask in zip(a.segments, scene.masks, strict=True):
            np.testing.assert_array_equal(segment.mask, mask)
        assert a.captions == (scene.caption,)
        shows, state = scene.keypoints[..., 2] > 0, a.keypoints[..., 2]
        np.testing.assert_array_equal(state == 2, shows)
        np.testing.assert_array_equal(a.keypoints[state > 0, :2], scene.keypoints[state > 0, :2])
        assert not a.keypoints[state == 0].any() and not state[scene.crowd].any()
        points = a.keypoints[state > 0, :2]
        assert ((points >= 0) & (points < 128)).all()
        states |= set(state.ravel().tolist())
    assert states == {0, 1, 2}
    assert source.keypoint_names[2:] == ("right", "bottom", "left")


def test_reader_can_be_pickled(source):
    read = pickle.loads(pickle.dumps(source.read))
    np.testing.assert_array_equal(read(5), source.read(5))


def test_second_call_draws_nothing(data_dir, monkeypatch):
    monkeypatch.setattr(shapes, "draw", None)
    assert len(shapes.load("validation", data_dir=data_dir, config=shapes.TINY)) == 16


def test_what_was_killed_is_drawn_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_DRAWING, tmp_path], check=False)
    assert done.returncode == 7
    assert list(tmp_path.rglob("*incomplete*"))
    assert not list(tmp_path.rglob("dataset_info.json"))
    source = shapes.load("train", data_dir=tmp_path, config=shapes.TINY)
    assert len(source) == 64
    np.testing.assert_array_equal(source.annotations[63].boxes, shapes.draw("train", 63).boxes)


def test_two_at_once_share_what_the_faster_wrote(tmp_path, monkeypatch):
    draw = shapes.draw

    def overtaken(split, index, **options):
        monkeypatch.setattr(shapes, "draw", draw)
        shapes.prepare(tmp_path, config=shapes.TINY)
        return draw(split, index, **options)

    monkeypatch.setattr(shapes, "draw", overtaken)
    assert len(shapes.load("test", data_dir=tmp_path, config=shapes.TINY)) == 16
    assert len(list(tmp_path.rglob("dataset_info.json"))) == 1


def test_imports_neither_jax_nor_tensorflow():
    code = (
        "import sys, jaxdet.data.shapes; sys.exit(bool({'jax', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rejects_unknown_split(data_dir):
    with pytest.raises(ValueError, match="'val'"):
        shapes.load("val", data_dir=data_dir, config=shapes.TINY)
    with pytest.raises(ValueError, match="'val'"):
        shapes.draw("val", 0)
