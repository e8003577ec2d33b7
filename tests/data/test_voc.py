import numpy as np
import pytest

from jaxdet.data import voc
from jaxdet.data.records import DataError


@pytest.fixture
def one(tmp_path, write_voc, write_picture):
    """Writes and reads one picture: `one(objects, **options)`."""
    write_picture(tmp_path / "a.png")

    def read(objects, *, classes=None, **options):
        write_voc(tmp_path / "a.xml", objects, **options)
        pairs, _ = voc.pair_side_by_side(tmp_path)
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
    assert source.notes == ("Boxes without area, left out: 2 (a.xml, a.xml).",)


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
    with pytest.raises(DataError, match=r"a.xml: size is 0 x 60"):
        one([], size=(0, 60))


def test_broken_xml(tmp_path, write_picture):
    write_picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotation><object>")
    pairs, _ = voc.pair_side_by_side(tmp_path)
    with pytest.raises(DataError, match=r"a.xml: is not readable XML"):
        voc.read_voc("test", pairs)


def test_pairs(tmp_path, write_voc, write_picture):
    write_picture(tmp_path / "alone.png")
    assert voc.pair_side_by_side(tmp_path) == ([], [tmp_path / "alone.png"])
    write_voc(tmp_path / "b.xml", [])
    with pytest.raises(DataError, match=r"b.xml: its picture b.jpg"):
        voc.pair_side_by_side(tmp_path)
    write_picture(tmp_path / "b.png")
    write_picture(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"b.png: b.jpg has the same name"):
        voc.pair_side_by_side(tmp_path)
