import numpy as np
import pytest

from jaxdet.data import voc
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report


@pytest.fixture
def one(tmp_path, write_voc, write_picture):
    """Writes and reads one picture: `one(objects, **options)`."""
    write_picture(tmp_path / "a.png")

    def read(objects, *, classes=None, **options):
        write_voc(tmp_path / "a.xml", objects, **options)
        pairs, _ = voc.pair_side_by_side(tmp_path, Report())
        return voc.read_voc("test", pairs, classes=classes)

    return read


def test_boxes_become_half_open(one):
    """A box over the whole 60 x 40 picture, and one over columns 1, 2 and rows 3, 4, 5."""
    source = one([(1, 1, 60, 40, "dog"), (2, 4, 3, 6, "cat")], difficult=[1])
    annotation = source.annotations[0]
    np.testing.assert_array_equal(annotation.boxes, [[0, 0, 60, 40], [1, 3, 3, 6]])
    assert source.classes == ("cat", "dog") and annotation.labels.tolist() == [2, 1]
    assert annotation.difficult.tolist() == [False, True] and not source.notes
    assert source[0][0].shape == (40, 60, 3)


def test_without_objects(one):
    annotation = one([], classes=("cat",)).annotations[0]
    assert annotation.boxes.shape == (0, 4) and annotation.difficult.dtype == bool


def test_stray_clicks_are_left_out(one):
    source = one([(504, 337, 504, 337, "cat"), (9, 5, 9, 20, "cat"), (9, 5, 19, 20, "cat")])
    np.testing.assert_array_equal(source.annotations[0].boxes, [[8, 4, 19, 20]])
    assert source.notes == ("Boxes without area, left out: 2 (a.xml: object 1, a.xml: object 2).",)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, "x", 5, 5, "cat"), "object 1: bndbox/ymin = 'x' is no finite number"),
        ((1, 1, "inf", 5, "cat"), "object 1: bndbox/xmax = 'inf'"),
        ((1, 1, 5, "", "cat"), "object 1: bndbox/ymax is missing or empty"),
        ((1, 1, 5, 5, " "), "object 1: name is missing or empty"),
        ((1, 1, 5, 5, "cow"), "object 1: name = 'cow' is none of the classes cat, dog"),
    ],
)
def test_faults_name_file_and_field(one, box, message):
    with pytest.raises(DataError, match=f"a.xml: {message}"):
        one([box], classes=("cat", "dog"))


def test_size_must_be_there(one):
    with pytest.raises(DataError, match=r"a.xml: size: height 0 and width 60"):
        one([], size=(0, 60))


def test_broken_xml(tmp_path, write_picture):
    write_picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotation><object>")
    pairs, _ = voc.pair_side_by_side(tmp_path, Report())
    with pytest.raises(DataError, match=r"a.xml: is not readable XML"):
        voc.read_voc("test", pairs)


def test_pairs(tmp_path, write_voc, write_picture):
    report = Report()
    write_picture(tmp_path / "alone.png")
    assert voc.pair_side_by_side(tmp_path, report) == ([], [tmp_path / "alone.png"])
    write_voc(tmp_path / "b.xml", [])
    voc.pair_side_by_side(tmp_path, report)
    write_picture(tmp_path / "b.png")
    write_picture(tmp_path / "b.jpg")
    voc.pair_side_by_side(tmp_path, report)
    missing, twice = report.faults
    assert "b.xml: its picture b.jpg" in missing and "b.png: b.jpg has the same name" in twice


def test_parts_are_no_objects(tmp_path, write_voc, write_picture):
    """VOC 2007 marks heads and hands of people within their object."""
    write_picture(tmp_path / "a.png")
    write_voc(tmp_path / "a.xml", [(11, 11, 30, 30, "person")])
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    text = (tmp_path / "a.xml").read_text()
    # Before the object's own name and box, as the order of fields is nobody's promise.
    text = text.replace("<object>", f"<object><part><name>head</name>{box}</part>")
    (tmp_path / "a.xml").write_text(text)
    pairs, _ = voc.pair_side_by_side(tmp_path, Report())
    source = voc.read_voc("test", pairs)
    np.testing.assert_array_equal(source.annotations[0].boxes, [[10, 10, 30, 30]])
    assert source.classes == ("person",)
    assert source.notes == ("Parts of objects (heads, hands, feet), not read: 1 (a.xml: 1).",)


def test_faults_cost_their_picture_only(tmp_path, write_voc, write_picture):
    for name in "abc":
        write_picture(tmp_path / f"{name}.png")
        write_voc(tmp_path / f"{name}.xml", [(1, 1, 5, 5, "cat"), (1, 1, 6, 6, "cat")])
    spoiled = (tmp_path / "b.xml").read_text().replace("<xmax>6", "<xmax>six")
    (tmp_path / "b.xml").write_text(spoiled)
    report = Report()
    pairs, _ = voc.pair_side_by_side(tmp_path, report)
    source = voc.read_voc("test", pairs, report=report)
    assert [a.name for a in source.annotations] == ["a.png", "c.png"]
    assert len(report.faults) == 1 and "object 2: bndbox/xmax = 'six'" in report.faults[0]
    assert source.read.paths == (tmp_path / "a.png", tmp_path / "c.png")
