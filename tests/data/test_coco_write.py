import json

import cv2
import numpy as np
import pytest

from jaxdet.data import coco_json, coco_write, shapes
from jaxdet.data.coco_masks import segment_mask
from jaxdet.data.records import Annotation, Bitmap, Polygons, Source


def source_of(pixels, names, **more):
    """A source in memory, a box in each picture."""
    annotations = tuple(
        Annotation(
            image_id=10 + i,
            name=name,
            size=pixels.shape[:2],
            boxes=np.array([[1, 2, 5, 6]], np.float32),
            labels=np.array([1], np.int32),
            crowd=np.array([False]),
            difficult=np.array([i == 0]),
            **more,
        )
        for i, name in enumerate(names)
    )
    return Source("test", ("cat",), annotations, read=lambda index: pixels, category_ids=(4,))


def test_all_that_shapes_knows_comes_back(tmp_path):
    source = shapes.load("test", data_dir=tmp_path / "data", config=shapes.TINY)
    coco_write.write_coco({"test": source}, tmp_path / "out")
    again = coco_json.read_coco(tmp_path / "out" / "annotations" / "instances_test.json")
    assert again.keypoint_names == source.keypoint_names
    assert again.keypoint_pairs == source.keypoint_pairs
    assert (again.classes, again.category_ids) == (source.classes, source.category_ids)
    for i, (a, b) in enumerate(zip(source.annotations, again.annotations, strict=True)):
        assert (a.image_id, a.size, a.captions) == (b.image_id, b.size, b.captions)
        for field in ("boxes", "labels", "crowd", "difficult", "areas", "keypoints"):
            np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=1e-4)
        for s, t in zip(a.segments, b.segments, strict=True):
            np.testing.assert_array_equal(segment_mask(s, a.size), segment_mask(t, a.size))
        np.testing.assert_array_equal(source[i][0], again[i][0])


@pytest.mark.parametrize(
    "name",
    [
        *("../../outside.png", "/etc/outside.png", "..\\..\\outside.png", "..", "", "a\0b.png"),
        *("x" * 5000, "\n", "CON: $(touch x).png", "dir/", ".hidden"),
    ],
)
def test_nothing_is_written_outside(tmp_path, name):
    pixels = np.full((8, 9, 3), 7, np.uint8)
    source = source_of(pixels, [name, name, "plain.png"])
    coco_write.write_coco({"train": source}, tmp_path / "out" / "deep")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all((tmp_path / "out" / "deep") in p.parents for p in files) and len(files) == 4
    again = coco_json.read_coco(tmp_path / "out" / "deep" / "annotations" / "instances_train.json")
    assert len({a.name for a in again.annotations}) == 3
    np.testing.assert_array_equal(again[1][0], pixels)


def test_pictures_stay_as_they_are(tmp_path, write_coco, write_picture):
    for name in ("a.jpg", "b.png", "c.bmp"):
        write_picture(tmp_path / "in" / name)
    write_coco(tmp_path / "in" / "x.json", {f"{n}": [] for n in ("a.jpg", "b.png", "c.bmp")})
    source = coco_json.read_coco(tmp_path / "in" / "x.json")
    coco_write.write_coco({"train": source}, tmp_path / "out")
    for name in ("a.jpg", "b.png"):
        written = (tmp_path / "out" / "train" / name).read_bytes()
        assert written == (tmp_path / "in" / name).read_bytes()
    np.testing.assert_array_equal(  # TIFF, BMP and others become PNG.
        cv2.imread(str(tmp_path / "out" / "train" / "c.png")),
        cv2.imread(str(tmp_path / "in" / "c.bmp")),
    )


def test_fields_by_hand():
    square = Polygons((np.array([[1, 2], [5, 2], [5, 6], [1, 6]], np.float32),))
    keypoints = np.array([[[3, 4, 2], [0, 0, 0]]], np.float32)
    source = source_of(np.zeros((8, 9, 3), np.uint8), ["a", "b"], segments=(square,))
    source = Source(
        *("test", ("cat",)),
        tuple(a._replace(keypoints=keypoints) for a in source.annotations),
        read=source.read,
        keypoint_names=("left", "right"),
    )
    data = coco_write.to_coco(source)
    json.dumps(data)
    first, second = data["annotations"]
    assert first["segmentation"] == [[1, 2, 5, 2, 5, 6, 1, 6]]
    assert first["keypoints"] == [3, 4, 2, 0, 0, 0] and first["num_keypoints"] == 1
    assert (first["iscrowd"], first["difficult"]) == (1, 1)
    assert second["iscrowd"] == 0 and "difficult" not in second
    assert data["categories"][0]["keypoints"] == ["left", "right"]


def test_bitmaps_are_run_lengths():
    mask = Bitmap(np.ones((2, 3), bool), (1, 2))
    source = source_of(np.zeros((8, 9, 3), np.uint8), ["a"], segments=(mask,))
    (row,) = coco_write.to_coco(source)["annotations"]
    assert row["segmentation"]["size"] == [8, 9] and isinstance(row["segmentation"]["counts"], str)


def test_does_not_overwrite(tmp_path):
    source = source_of(np.zeros((8, 9, 3), np.uint8), ["a"])
    coco_write.write_coco({"train": source}, tmp_path)
    with pytest.raises(FileExistsError):
        coco_write.write_coco({"train": source}, tmp_path)
