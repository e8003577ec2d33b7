import json

import numpy as np
import pytest

from jaxdet.data import via
from jaxdet.data.coco_masks import segment_mask
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report

SQUARE = {"name": "polygon", "all_points_x": [5, 15, 15, 5], "all_points_y": [6, 6, 20, 20]}


@pytest.fixture
def one(tmp_path, write_picture):
    """Writes and reads one picture: `one([(shape, attributes), ...])`."""
    write_picture(tmp_path / "a.png")

    def read(regions, *, project=False, listed=False, **options):
        rows = [{"shape_attributes": s, "region_attributes": a} for s, a in regions]
        rows = rows if listed else {str(i): row for i, row in enumerate(rows)}
        data = {"a.png1": {"filename": "a.png", "size": 1, "regions": rows}}
        data = {"_via_settings": {}, "_via_img_metadata": data} if project else data
        (tmp_path / "via.json").write_text(json.dumps(data))
        assert via.is_via(tmp_path / "via.json")
        return via.read_via(tmp_path / "via.json", **options)

    return read


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_both_versions(one, project, listed):
    source = one([(SQUARE, {"label": "cat"})], project=project, listed=listed)
    np.testing.assert_array_equal(source.annotations[0].boxes, [[5, 6, 15, 20]])
    assert source.classes == ("cat",) and source.annotations[0].size == (40, 60)
    mask = segment_mask(source.annotations[0].segments[0], (40, 60))
    assert mask.sum() == 140 and mask[6:20, 5:15].all()


def test_other_shapes(one):
    shapes = [
        {"name": "rect", "x": 1, "y": 2, "width": 10, "height": 5},
        {"name": "circle", "cx": 20, "cy": 20, "r": 8},
        {"name": "ellipse", "cx": 30, "cy": 20, "rx": 9, "ry": 3, "theta": np.pi / 2},
        {"name": "point", "cx": 3, "cy": 3},
    ]
    source = one([(shape, {}) for shape in shapes])
    boxes = source.annotations[0].boxes
    np.testing.assert_allclose(boxes, [[1, 2, 11, 7], [12, 12, 28, 28], [27, 11, 33, 29]], atol=0.1)
    circle = segment_mask(source.annotations[0].segments[1], (40, 60))
    assert circle.sum() == pytest.approx(np.pi * 64, rel=0.03)
    assert source.classes == ("object",) and source.annotations[0].segments[0] is None
    assert source.notes == (f"{via.POINTS}: 1 (via.json: 'a.png1'.regions[3].shape_attributes).",)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"name": "x", "class": "cat"}, "cat"),
        ({"Type": "cat"}, "cat"),
        ({"fruit": "fig"}, "fig"),
        ({"class": {"cat": True, "dog": False}}, "cat"),
    ],
)
def test_which_attribute_is_the_class(one, attributes, name):
    assert one([(SQUARE, attributes)]).classes == (name,)


def test_what_has_no_class_is_a_fault(one):
    with pytest.raises(DataError, match="its attribute 'class' is missing"):
        one([(SQUARE, {"class": "cat"}), (SQUARE, {})])
    with pytest.raises(DataError, match="which of the attributes colour, fruit is the class"):
        one([(SQUARE, {"colour": "red", "fruit": "fig"})])
    with pytest.raises(DataError, match="'cow' is none of the classes cat, dog"):
        one([(SQUARE, {"class": "cow"})], classes=("cat", "dog"))
    assert one([(SQUARE, {})], classes=("balloon",)).classes == ("balloon",)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"name": "polygon"}, "all_points_x is missing"),
        (SQUARE | {"all_points_y": [1, 2, 3]}, "all_points_y = .* must be 4 finite numbers"),
        (SQUARE | {"all_points_x": [1, 2, 3, "x"]}, "all_points_x = .* finite"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "three points"),
        ({"name": "star"}, "'star' is no shape"),
        ({"name": "rect", "x": 1, "y": 1, "width": None, "height": 2}, "width is missing"),
    ],
)
def test_faults_name_the_region(one, shape, message):
    with pytest.raises(DataError, match=rf"via.json: 'a.png1'.regions\[1\].*{message}"):
        one([(SQUARE, {}), (shape, {})])


def test_two_rows_of_one_picture(tmp_path, write_picture):
    write_picture(tmp_path / "a.png")
    row = {"filename": "a.png", "regions": []}
    (tmp_path / "via.json").write_text(json.dumps({"a": row, "b": row}))
    report = Report()
    source = via.read_via(tmp_path / "via.json", report=report)
    assert len(source) == 1 and "'b': its picture is another's too" in report.faults[0]


def test_others_are_not_of_this_tool(tmp_path, write_coco):
    write_coco(tmp_path / "coco.json", {"a.png": []})
    (tmp_path / "text.json").write_text('{"filename": ')
    for name in ("coco.json", "text.json", "gone.json"):
        assert not via.is_via(tmp_path / name)
