import numpy as np
import pytest

from jaxdet.data import csv_boxes
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report

HEADER = "picture,x1,y1,x2,y2,class"


@pytest.fixture
def one(tmp_path, write_picture):
    """Writes and reads a file about pictures a.png and b.png: `one(text)`."""
    root = tmp_path / "set" / "boxes"  # Pictures are looked for in the folder above, too.
    for name in "ab":
        write_picture(root / f"{name}.png")

    def read(text, **options):
        (root / "boxes.csv").write_text(text)
        return csv_boxes.read_csv(root / "boxes.csv", **options)

    return read


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        "filename,xmin,ymin,xmax,ymax,label",
        "Image Path,X_Min,Y_Min,X_Max,Y_Max,Class Name",
        "img,left,top,right,bottom,category",
    ],
)
def test_spellings(one, header):
    source = one(f"{header}\nb.png,1,2,11,22.5,dog\na.png,0,0,5,5,cat\nb.png,3,3,9,9,cat\n")
    assert [a.name for a in source.annotations] == ["b.png", "a.png"]
    np.testing.assert_array_equal(source.annotations[0].boxes, [[1, 2, 11, 22.5], [3, 3, 9, 9]])
    assert source.classes == ("cat", "dog") and source.annotations[0].labels.tolist() == [2, 1]
    assert source.annotations[0].size == (40, 60)


def test_order_other_columns_and_pictures_without_objects(one):
    source = one('class,more,x1,x2,y1,y2,file\n"a, b",7,1,2,3,4,a.png\n,,,,,,b.png\n')
    assert source.classes == ("a, b",)
    np.testing.assert_array_equal(source.annotations[0].boxes, [[1, 3, 2, 4]])
    assert source.annotations[1].name == "b.png" and not len(source.annotations[1].labels)


def test_a_stated_size_is_taken_and_seen_to_be_wrong(one):
    source = one(f"{HEADER},width,height\na.png,1,1,5,5,cat,60,40\nb.png,1,1,5,5,cat,60,41\n")
    assert source[0][1].size == (40, 60)
    with pytest.raises(DataError, match=r"b.png: the picture is 40 x 60 .* says 41 x 60"):
        source[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,1,1,5,five,cat", "y2 = 'five' is no finite number"),
        ("a.png,1,1,5,inf,cat", "y2 = 'inf'"),
        ("a.png,1,1,5,,cat", "y2 = '' is no finite number"),
        ("a.png,1,1", "x2 = '' is no finite number"),
        ("a.png,1,1,5,5,cow", "class = 'cow' is none of the classes cat"),
        ("a.png,1,1,5,5,", "class = '' is none"),
        (",1,1,5,5,cat", "picture is empty"),
        ("c.png,1,1,5,5,cat", r"picture = 'c.png': there is no such picture"),
        ("./a.png,1,1,5,5,cat", r"is there by two names"),
    ],
)
def test_faults_name_the_line(one, row, message):
    with pytest.raises(DataError, match=rf"boxes.csv: line 3.*{message}"):
        one(f"{HEADER}\na.png,1,1,5,5,cat\n{row}\n", classes=("cat",))


def test_a_fault_costs_the_picture(one):
    report = Report()
    source = one(
        f"{HEADER}\na.png,1,1,5,5,cat\nb.png,1,1,5,5,cat\nb.png,x,1,5,5,cat\n", report=report
    )
    assert [a.name for a in source.annotations] == ["a.png"] and report.bad == {"b.png"}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "picture,x1,y1,x2,class\n", "\0", "\xff"])
def test_other_files_are_refused(one, tmp_path, text):
    (tmp_path / "boxes.csv").write_bytes(text.encode("latin-1"))
    assert not csv_boxes.is_csv(tmp_path / "boxes.csv")
    with pytest.raises(DataError, match=r"boxes.csv: (line 1 must name|is no CSV)"):
        csv_boxes.read_csv(tmp_path / "boxes.csv")
