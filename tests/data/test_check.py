import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxdet.data import arrays, check, shapes
from jaxdet.data.reports import CLIPPED, EMPTY


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def folder(tmp_path, write_voc, write_picture):
    """A good VOC folder with pictures a.jpg .. h.jpg."""
    for name in "abcdefgh":
        write_picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_voc(tmp_path / "Annotations" / f"{name}.xml", [(1, 1, 20, 20, "cat")])
    return tmp_path


def one_part(path, **options):
    (checked,) = check.check_data(path, **options).values()
    return checked


def test_a_good_set_has_no_findings(folder):
    seen = []
    source, report = one_part(folder, progress=lambda *args: seen.append(args))
    assert not report.faults and not report.remarks and len(source) == 8
    assert seen == [("all", n, 16) for n in range(1, 17)]


def test_every_fault_is_told_with_file_and_field(folder, write_picture):
    xmls, pictures = folder / "Annotations", folder / "JPEGImages"
    rewrite(xmls / "a.xml", "<xmax>20", "<xmax>wide")
    (xmls / "b.xml").write_text("<annotation>")
    (pictures / "c.jpg").unlink()
    data = (pictures / "d.jpg").read_bytes()
    (pictures / "d.jpg").write_bytes(data[: len(data) // 2])
    write_picture(pictures / "e.jpg", 60, 40)
    rewrite(xmls / "f.xml", "<name>cat", "<name>")
    source, report = one_part(folder)
    wanted = [
        "c.xml: its picture c.jpg (or .png) is not in",
        "a.xml: object 1: bndbox/xmax = 'wide'",
        "b.xml: is not readable XML",
        "f.xml: object 1: name is missing",
        "d.jpg: the picture is cut off",
        "e.jpg: the picture is 60 x 40",
    ]
    for text, fault in zip(wanted, report.faults, strict=True):
        assert text in fault
    assert [a.name for a in source.annotations] == ["d.jpg", "e.jpg", "g.jpg", "h.jpg"]


def test_remarks(folder):
    xmls, pictures = folder / "Annotations", folder / "JPEGImages"
    box = (xmls / "a.xml").read_text()
    thing = box[box.index("<object>") : box.index("</annotation>")]
    rewrite(xmls / "a.xml", thing, thing * 2)
    rewrite(xmls / "b.xml", "<xmax>20", "<xmax>200")
    rewrite(xmls / "c.xml", "<xmax>20", "<xmax>1")
    shutil.copy(pictures / "e.jpg", pictures / "d.jpg")
    grey = np.zeros((40, 60), np.uint8)
    for name, mode in (("f", "L"), ("g", "CMYK")):
        Image.fromarray(grey).convert(mode).save(pictures / f"{name}.jpg")
    turned = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(pictures / "h.jpg", exif=exif)
    _, report = one_part(folder)
    assert not report.faults
    assert {what: len(places) for what, places in report.remarks.items()} == {
        check.SAME_OBJECT: 1,
        CLIPPED: 1,
        EMPTY: 1,
        check.SAME_PICTURE: 1,
        check.MODES["L"]: 1,
        check.MODES["CMYK"]: 1,
        check.TURNED: 1,
    }
    assert check.UPRIGHT not in report.remarks
    (place,) = report.remarks[CLIPPED]
    assert place == f"{xmls / 'b.xml'}: object 1"
    (place,) = report.remarks[check.SAME_PICTURE]
    assert "e.jpg, and in all: " in place and place.endswith("d.jpg")


def test_a_picture_damaged_in_its_middle_is_named(folder):
    """Its end is there, and OpenCV makes up what it cannot read."""
    damaged = folder / "JPEGImages" / "c.jpg"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    damaged.write_bytes(data)
    source, report = one_part(folder)
    assert len(source) == 8 and not report.faults
    (place,) = report.remarks[check.DOUBTS]
    assert place.startswith(f"{damaged}: Corrupt JPEG data")


def test_pictures_in_records_are_looked_at_as_files_are(folder, tmp_path):
    damaged = folder / "JPEGImages" / "c.jpg"
    data = damaged.read_bytes()
    middle = len(data) // 2
    damaged.write_bytes(data[:middle] + bytes(100) + data[middle + 100 :])
    shutil.copy(folder / "JPEGImages" / "e.jpg", folder / "JPEGImages" / "f.jpg")
    source, _ = one_part(folder)
    records = arrays.write_arrays({"train": source}, tmp_path / "records")
    _, report = one_part(records)
    assert set(report.remarks) == {check.DOUBTS, check.SAME_PICTURE} and not report.faults
    (place,) = report.remarks[check.DOUBTS]
    assert place.startswith(f"{records}: record 2 of train: Corrupt JPEG data")


def test_generated_scenes_are_looked_at(tmp_path):
    folder = shapes.prepare(tmp_path, config=shapes.TINY)
    for source, report in check.check_data(folder).values():
        assert len(source) and not report.faults and not report.remarks


@pytest.mark.parametrize(
    ("channels", "dtype", "mode"), [(4, np.uint8, "RGBA"), (1, np.uint16, "I;16")]
)
def test_kinds_of_png(tmp_path, write_coco, channels, dtype, mode):
    pixels = np.full((40, 60, channels), np.iinfo(dtype).max, dtype)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    write_coco(tmp_path / "x.json", {"a.png": []})
    source, report = one_part(tmp_path / "x.json")
    assert list(report.remarks) == [check.MODES[mode]] and source[0][0].dtype == np.uint8


@pytest.mark.parametrize(("brightest", "dark"), [(4095, True), (1 << 13, False)])
def test_dark_pictures_of_16_bits(tmp_path, write_coco, brightest, dark):
    """A camera of 12 bits leaves the upper four empty."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 60), brightest, np.uint16))
    write_coco(tmp_path / "x.json", {"a.png": []})
    _, report = one_part(tmp_path / "x.json")
    assert (check.DARK in report.remarks) == dark and not report.faults


def test_the_same_picture_in_two_parts(tmp_path, write_voc, write_picture):
    for part, name in (("train", "a"), ("val", "b")):
        write_picture(tmp_path / part / f"{name}.jpg")
        write_voc(tmp_path / part / f"{name}.xml", [])
    shutil.copy(tmp_path / "train" / "a.jpg", tmp_path / "val" / "b.jpg")
    checked = check.check_data(tmp_path)
    assert not checked["train"].report.remarks
    assert list(checked["val"].report.remarks) == [check.SAME_PICTURE]


def test_parts_do_not_mix(tmp_path, write_coco, write_picture):
    """Ids of images begin anew in each file: a fault in one is none of the other's."""
    for part in ("train", "val"):
        write_picture(tmp_path / part / f"{part}.png")
        write_coco(tmp_path / f"{part}.json", {f"{part}.png": [(1, 1, 5, 5, 3)]})
    rewrite(tmp_path / "val.json", '"bbox": [1, 1, 5, 5]', '"bbox": [1, 1, 5]')
    checked = check.check_data(tmp_path)
    assert len(checked["train"].source) == 1 and not checked["train"].report.faults
    assert not len(checked["val"].source) and len(checked["val"].report.faults) == 1


def test_what_cannot_be_read_at_all(tmp_path):
    (tmp_path / "x.json").write_text("{")
    source, report = one_part(tmp_path / "x.json")
    assert source is None and "is not JSON" in report.faults[0]


def test_counts_by_class_and_size(folder, write_voc):
    boxes = [(1, 1, 31, 32, "cat"), (1, 1, 32, 32, "cat"), (1, 1, 60, 40, "dog")]
    write_voc(folder / "Annotations" / "a.xml", boxes)
    source, _ = one_part(folder)
    lines = [line.split() for line in check.count_table(source).splitlines()]
    assert lines[0] == ["class", "objects", "small", "medium", "large", "pictures"]
    assert lines[1:] == [["cat", "9", "8", "1", "0", "8"], ["dog", "1", "0", "1", "0", "1"]]
