import numpy as np
import pytest

from jaxdet.data import arrays, shapes, tfds_source
from jaxdet.data.coco_masks import segment_mask


def test_all_that_shapes_knows_comes_back(tmp_path):
    parts = {
        part: shapes.load(name, data_dir=tmp_path / "data", config=shapes.TINY)
        for part, name in (("val", "validation"), ("test", "test"))
    }
    folder = arrays.write_arrays(parts, tmp_path / "out")
    assert set(tfds_source.split_names(folder)) == {"val", "test"}
    assert list((tmp_path / "out").iterdir()) == [folder.parent]
    for part, source in parts.items():
        again = tfds_source.read_tfds(folder, part)
        assert again.keypoint_names == source.keypoint_names
        assert again.keypoint_pairs == source.keypoint_pairs
        assert (again.classes, again.category_ids) == (source.classes, source.category_ids)
        for i, (a, b) in enumerate(zip(source.annotations, again.annotations, strict=True)):
            assert (a.image_id, a.name, a.size) == (b.image_id, b.name, b.size)
            assert a.captions == b.captions
            for field in ("boxes", "labels", "crowd", "difficult", "areas", "keypoints"):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
            for s, t in zip(a.segments, b.segments, strict=True):
                np.testing.assert_array_equal(segment_mask(s, a.size), segment_mask(t, a.size))
            np.testing.assert_array_equal(source[i][0], again[i][0])
    with pytest.raises(FileExistsError, match="is there already"):
        arrays.write_arrays(parts, tmp_path / "out")
