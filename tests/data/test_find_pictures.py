import pytest

from jaxdet.data.find_pictures import find_pictures
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report


@pytest.fixture
def root(tmp_path, write_picture):
    for folder in ("train2017", "val2017", "deep/er"):
        write_picture(tmp_path / "set" / folder / f"{folder[0]}.png")
    for folder in ("train2017", "val2017"):
        write_picture(tmp_path / "set" / folder / "same.png")
    (tmp_path / "set" / "annotations").mkdir()
    return tmp_path / "set"


def find(file, *names, images=None):
    report = Report()
    found = find_pictures(file, [(n, f"f: {n}") for n in names], report, images=images)
    return found, report


def test_around_the_file(root):
    found, report = find(root / "annotations" / "x.json", "t.png", "d.png", "deep/er/d.png")
    deep = root / "deep" / "er" / "d.png"
    assert found == [root / "train2017" / "t.png", deep, deep] and not report.faults


def test_a_folder_with_the_files_name_goes_first(root):
    found, _ = find(root / "annotations" / "instances_val2017.json", "same.png")
    assert found == [root / "val2017" / "same.png"]


def test_missing_and_twice(root):
    found, report = find(root / "annotations" / "x.json", "gone.png", "t.png", "same.png")
    assert found == [None, root / "train2017" / "t.png", None]
    gone, twice = report.faults
    assert "f: gone.png = 'gone.png': there is no such picture" in gone
    assert "f: same.png = 'same.png' is both in" in twice
    found, report = find(root / "x.json", "same.png", images=root / "train2017")
    assert found == [root / "train2017" / "same.png"] and not report.faults


@pytest.mark.parametrize("name", ["", "a\0b.png", "x" * 5000, "../" * 50 + "etc/passwd.png"])
def test_names_that_no_file_has(root, name):
    found, report = find(root / "annotations" / "x.json", name)
    assert found == [None] and len(report.faults) == 1


def test_images_must_be_a_folder(root):
    with pytest.raises(DataError, match=r"nowhere: is no folder"):
        find(root / "x.json", "t.png", images=root / "nowhere")
