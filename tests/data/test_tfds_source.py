import io
import json
import pathlib
import pickle
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdet.data import scenes, shapes, tfds_source
from jaxdet.data.coco_masks import segment_mask
from jaxdet.data.records import DataError

# (label, relative yxyx box, more): of the first picture; the second has none.
OBJECTS = [("dog", (0.1, 0.2, 0.3, 0.4), 0), ("cat", (0.0, 0.0, 1.0, 1.0), 1)]
SCALE = np.array([60, 40, 60, 40])


class _Set(tfds.core.GeneratorBasedBuilder):
    """A data set with the features of TFDS's own."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None
    key, fields = "objects", {"label": tfds.features.ClassLabel(names=["cat", "dog"])}

    def _info(self):
        fields = {"bbox": tfds.features.BBoxFeature()} | self.fields
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": tfds.features.Scalar(np.int64),
            self.key: tfds.features.Sequence(fields),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        for number in range(2):
            pixels = np.full((40, 60, 3), number, np.uint8)
            objects = []
            for label, box, flag in [] if number else OBJECTS:
                row = {"bbox": tfds.features.BBox(*box), "label": label}
                row |= dict.fromkeys(("is_crowd", "is_difficult", "invalid"), bool(flag))
                row |= {"area": 7}
                objects.append({key: row[key] for key in ("bbox", *self.fields)})
            yield (
                number,
                {
                    "image": io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes()),
                    "image/filename": f"{number}.png",
                    "image/id": 100 + number,
                    self.key: objects,
                },
            )


# TFDS has sets of these names.
class Coco(_Set, skip_registration=True):
    fields = _Set.fields | {"is_crowd": np.bool_, "area": np.int64}


class Voc(_Set, skip_registration=True):
    fields = _Set.fields | {"is_difficult": np.bool_}


class WiderFace(_Set, skip_registration=True):
    key, fields = "faces", {"invalid": np.bool_}


class Cifar10(_Set, skip_registration=True):
    """Grey pictures with a class each."""

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(40, 60, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _generate_examples(self):
        for number in range(2):
            encoded = cv2.imencode(".png", np.full((40, 60), number, np.uint8))[1]
            yield number, {"image": io.BytesIO(encoded.tobytes()), "label": 1 - number}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders of the sets, by their names."""
    root = tmp_path_factory.mktemp("tfds")
    folders = {}
    for kind in (Coco, Voc, WiderFace, Cifar10):
        builder = kind(data_dir=str(root), file_format="array_record")
        builder.download_and_prepare()
        folders[builder.name] = pathlib.Path(builder.data_dir)
    return folders


def test_coco(prepared):
    folder = prepared["coco"]
    assert tfds_source.is_prepared(folder)
    assert tfds_source.split_names(folder) == ("train", "validation")
    source = tfds_source.read_tfds(folder, "validation")
    first, second = source.annotations
    want = np.array([[0.2, 0.1, 0.4, 0.3], [0, 0, 1, 1]]) * SCALE
    np.testing.assert_allclose(first.boxes, want, atol=1e-4)
    assert first.labels.tolist() == [2, 1] and source.classes == ("cat", "dog")
    assert first.crowd.tolist() == [False, True] and first.areas.tolist() == [7, 7]
    assert (first.image_id, first.name, first.size) == (100, "0.png", (40, 60))
    assert second.boxes.shape == (0, 4) and (source[1][0] == 1).all()
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0][0], source[0][0])


def test_vocs_boxes_were_one_based(prepared):
    first = tfds_source.read_tfds(prepared["voc"], "train").annotations[0]
    want = np.array([[0.2, 0.1, 0.4, 0.3], [0, 0, 1, 1]]) * SCALE
    want[0, :2] -= 1
    np.testing.assert_allclose(first.boxes, want, atol=1e-4)
    assert first.difficult.tolist() == [False, True] and not first.crowd.any()


def test_faces_have_no_label(prepared):
    source = tfds_source.read_tfds(prepared["wider_face"], "train")
    assert source.classes == ("face",) and source.annotations[0].labels.tolist() == [1, 1]
    assert source.annotations[0].difficult.tolist() == [False, True]


def test_classes_of_whole_pictures(prepared):
    source = tfds_source.read_tfds(prepared["cifar10"], "train")
    assert source.classes == ("cat", "dog")
    assert [a.labels.tolist() for a in source.annotations] == [[2], [1]]
    np.testing.assert_array_equal(source.annotations[1].boxes, [[0, 0, 60, 40]])
    assert source[1][0].shape == (40, 60, 3) and (source[1][0] == 1).all()
    assert "whole pictures" in source.notes[0]
    with pytest.raises(DataError, match="label = 2 is none of the classes cat"):
        tfds_source.read_tfds(prepared["cifar10"], "train", classes=("cat",))


def test_given_classes(prepared):
    source = tfds_source.read_tfds(prepared["coco"], "train", classes=("dog", "bird", "cat"))
    assert source.annotations[0].labels.tolist() == [1, 3]
    with pytest.raises(DataError, match=r"record 0 of train: objects\[1\].label = 1 is none of"):
        tfds_source.read_tfds(prepared["coco"], "train", classes=("dog",))


def test_shapes_by_its_folder(tmp_path):
    folder = shapes.prepare(tmp_path, config=shapes.TINY)
    source = tfds_source.read_tfds(folder, "test")
    own = shapes.load("test", data_dir=tmp_path, config=shapes.TINY)
    assert source.classes == scenes.CLASSES and source.keypoint_pairs == own.keypoint_pairs
    for a, b in zip(source.annotations, own.annotations, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.keypoints, b.keypoints)
        assert a.captions == b.captions
        for s, t in zip(a.segments, b.segments, strict=True):
            np.testing.assert_array_equal(segment_mask(s, a.size), segment_mask(t, a.size))


def test_without_tensorflow_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(DataError, match=r"not installed .* pip install tensorflow"):
        tfds_source.find_prepared("voc/2007", tmp_path)
    with pytest.raises(DataError, match="no data set of this name"):
        tfds_source.find_prepared("no_such_set", tmp_path)


def test_finds_what_is_prepared(prepared):
    folder = prepared["coco"]
    assert tfds_source.find_prepared("coco", folder.parents[1]) == folder


def test_other_files_and_features_are_refused(prepared, tmp_path):
    text = (prepared["coco"] / "dataset_info.json").read_text()
    (tmp_path / "features.json").write_text((prepared["coco"] / "features.json").read_text())
    info = json.loads(text)
    (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"prepared as .*TFRECORD.* which only TensorFlow reads"):
        tfds_source.split_names(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="TFDS cannot open it"):
        tfds_source.split_names(tmp_path)
