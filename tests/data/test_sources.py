import pickle

import numpy as np
import pytest

from jaxdet.data import arrays, coco_json, pictures, sources, splits
from jaxdet.data.sources import DataError

OBJECTS = [(5, 6, 10, 20, 7), (0, 0, 60, 40, 3), (30.0, 10.0, 8.0, 9.0, 3)]


def as_voc(rows):
    names = {3: "cat", 7: "dog"}
    return [(x + 1, y + 1, x + w, y + h, names[c]) for x, y, w, h, c in map(to_int, rows)]


def to_int(row):
    return tuple(int(value) for value in row)


@pytest.fixture
def voc_folder(tmp_path, write_voc, write_picture):
    """Ten pictures a.jpg .. j.jpg as a VOC folder without lists."""
    root = tmp_path / "voc"
    for name in "abcdefghij":
        write_picture(root / "JPEGImages" / f"{name}.jpg")
        write_voc(root / "Annotations" / f"{name}.xml", as_voc(OBJECTS))
    return root


def names(source):
    return [annotation.name for annotation in source.annotations]


def test_twins_agree(tmp_path, voc_folder, write_coco):
    """The same objects written as COCO and as VOC come back as the same boxes."""
    rows = {f"{name}.jpg": OBJECTS for name in "abcdefghij"}
    write_coco(tmp_path / "coco.json", rows)
    coco = coco_json.read_coco(tmp_path / "coco.json", images=voc_folder / "JPEGImages")
    voc = {
        a.name: a
        for split in ("train", "val")
        for a in sources.open_folder(voc_folder, split=split).annotations
    }
    assert len(voc) == 10 and coco.classes == ("cat", "dog")
    for annotation in coco.annotations:
        np.testing.assert_array_equal(annotation.boxes, voc[annotation.name].boxes)
        np.testing.assert_array_equal(annotation.labels, voc[annotation.name].labels)


def test_one_part_is_divided(voc_folder):
    train = sources.open_folder(voc_folder, split="train")
    held_out = sources.open_folder(voc_folder, split="val")
    assert (len(train), len(held_out)) == (8, 2)
    assert sorted(names(train) + names(held_out)) == [f"{c}.jpg" for c in "abcdefghij"]
    assert names(sources.open_folder(voc_folder, split="test")) == names(held_out)
    assert train.notes == ("One part only: 8 of its 10 images are taken as 'train'.",)
    # Pictures stay with their annotations.
    path = voc_folder / "JPEGImages" / held_out.annotations[1].name
    np.testing.assert_array_equal(held_out[1][0], pictures.read_picture(path))


def test_voc_lists(voc_folder):
    lists = voc_folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    (lists / "test.txt").write_text("c 1\n\n")
    (lists / "cat_train.txt").write_text("d 1\n")
    assert names(sources.open_folder(voc_folder, split="train")) == ["b.jpg", "a.jpg"]
    for split in ("val", "test"):
        assert names(sources.open_folder(voc_folder, split=split)) == ["c.jpg"]
    (lists / "train.txt").write_text("gone\n")
    with pytest.raises(DataError, match=r"gone.xml: there is no such file"):
        sources.open_folder(voc_folder, split="train")


def test_labels_are_the_same_in_all_parts(tmp_path, write_voc, write_picture):
    for folder, name, label in (("train", "a", "zebra"), ("test", "b", "ant")):
        write_picture(tmp_path / "images" / folder / f"{name}.png")
        write_voc(tmp_path / "images" / folder / f"{name}.xml", [(1, 1, 9, 9, label)])
    train, test = (sources.open_folder(tmp_path, split=split) for split in ("train", "val"))
    assert train.classes == test.classes == ("ant", "zebra")
    assert train.annotations[0].labels.tolist() == [2] and names(test) == ["b.png"]


@pytest.mark.parametrize(
    "layout", ["annotations/instances_{}2017.json", "{}/_annotations.coco.json", "{}.json"]
)
def test_coco_layouts(tmp_path, write_coco, write_picture, layout):
    for split in ("train", "val"):
        write_picture(tmp_path / f"{split}2017" / f"{split}.png")
        write_coco(tmp_path / layout.format(split), {f"{split}.png": OBJECTS})
    for split in ("train", "val"):
        assert names(sources.open_folder(tmp_path, split=split)) == [f"{split}.png"]


def test_a_part_that_stands_for_another_is_told(tmp_path, write_coco, write_picture):
    for split in ("train", "test"):
        write_picture(tmp_path / split / f"{split}.png")
        write_coco(tmp_path / f"annotations/instances_{split}.json", {f"{split}.png": OBJECTS})
    notes = {split: sources.open_folder(tmp_path, split=split).notes for split in splits.SPLITS[:3]}
    assert notes == {"train": (), "val": ("There is no part 'val': 'test' is taken.",), "test": ()}


def test_nothing_found(tmp_path):
    with pytest.raises(DataError, match=r"no data set was found.*COCO.*VOC"):
        sources.open_folder(tmp_path, split="train")
    with pytest.raises(DataError, match=r"missing: there is no such file or folder"):
        sources.open_data(str(tmp_path / "missing"), split="train", data_dir=tmp_path)


def cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def test_validate_names_every_bad_picture(voc_folder, write_picture):
    folder = voc_folder / "JPEGImages"
    source = sources.open_folder(voc_folder, split="train", classes=("cat", "dog"))
    seen = []
    sources.validate(source, progress=seen.append)
    assert seen == list(range(1, 9))
    gone, cut, other, text = (folder / name for name in names(source)[:4])
    gone.unlink()
    cut_off(cut)
    write_picture(other, 60, 40)
    text.write_text("no picture")
    with pytest.raises(DataError) as error:
        sources.validate(source)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for line, path, fault in zip(
        lines,
        [gone, cut, other.name, text],
        [
            "cannot be read",
            "cut off",
            "60 x 40 (height x width), its annotation says 40 x 60",
            "not a picture",
        ],
        strict=True,
    ):
        assert line.startswith(f"{path}:") and fault in line


def test_large_sources_are_not_decoded(voc_folder, monkeypatch):
    source = sources.open_folder(voc_folder, split="train")
    monkeypatch.setattr(sources, "MAX_DECODED", 3)
    monkeypatch.setattr(pictures, "read_picture", lambda path: pytest.fail("decoded"))
    sources.validate(source)
    cut_off(voc_folder / "JPEGImages" / names(source)[2])
    with pytest.raises(DataError, match="cut off"):
        sources.validate(source)


def test_describe(tmp_path, write_coco, write_picture):
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png")
    path = tmp_path / "x.json"
    write_coco(path, {"a.png": OBJECTS, "b.png": []}, categories=((3, "cat"), (7, "dog"), (9, "x")))
    text = sources.describe(coco_json.read_coco(path))
    assert "2 images, 3 classes, 3 objects (0 crowd, 0 difficult); 1 images without" in text
    assert "cat 2, dog 1, 1 classes without objects" in text
    assert "height 40, width 60, square root of box area 8 to 49 (median 14) px" in text
    assert "0 objects" in sources.describe(
        sources.select(coco_json.read_coco(path), [1], name="empty")
    )


def test_to_coco_is_what_was_read(tmp_path, write_coco, write_picture):
    write_picture(tmp_path / "a.png")
    want = write_coco(tmp_path / "x.json", {"a.png": OBJECTS})
    got = sources.to_coco(coco_json.read_coco(tmp_path / "x.json"))
    assert got == want


def test_to_coco_difficult_counts_neither_way(voc_folder, write_voc):
    write_voc(voc_folder / "Annotations" / "a.xml", as_voc(OBJECTS), difficult=[1])
    source = sources.open_folder(voc_folder, split="train", classes=("cat", "dog"))
    source = sources.select(source, [names(source).index("a.jpg")], name="a")
    assert [row["iscrowd"] for row in sources.to_coco(source)["annotations"]] == [0, 1, 0]


def test_sources_can_be_pickled(voc_folder):
    source = sources.open_folder(voc_folder, split="val")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1][0], source[1][0])


def test_open_data_knows_shapes_and_folders(tmp_path):
    scenes = sources.open_data("shapes", split="val", data_dir=tmp_path / "data", scenes="tiny")
    assert len(scenes) == 16 and "circle" in scenes.classes
    with pytest.raises(DataError, match="--data"):
        sources.open_data("", split="val", data_dir=tmp_path)
    with pytest.raises(DataError, match="nothing_here"):
        sources.open_data(str(tmp_path / "nothing_here"), split="val", data_dir=tmp_path)


def spoil(folder, names):
    """A missing picture, a cut off one, an object without a name, one of an unknown class."""
    missing, cut, nameless, other = names
    (folder / "JPEGImages" / f"{missing}.jpg").unlink()
    cut_off(folder / "JPEGImages" / f"{cut}.jpg")
    for name, text in ((nameless, ""), (other, "cow")):
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<name>dog", f"<name>{text}", 1))


def test_open_data_refuses_or_skips(voc_folder, tmp_path):
    (voc_folder / "ImageSets" / "Main").mkdir(parents=True)
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join("abcdefghij"))
    (voc_folder / "ImageSets" / "Main" / "val.txt").write_text("a")
    spoil(voc_folder, "bdfh")
    options = {"split": "train", "data_dir": tmp_path, "classes": ("cat", "dog")}
    with pytest.raises(DataError) as error:
        sources.open_data(str(voc_folder), **options)
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and lines[-1].startswith("check_data.py lists all; --skip-bad")
    source = sources.open_data(str(voc_folder), **options, skip_bad=True)
    assert names(source) == [f"{c}.jpg" for c in "acegij"]
    assert source.notes[-1] == "Left out for 4 faults: 4 pictures."
    assert source.notes[-1] in sources.describe(source)
    for i in range(len(source)):
        want = pictures.read_picture(voc_folder / "JPEGImages" / names(source)[i])
        np.testing.assert_array_equal(source[i][0], want)


def test_skipping_everything_is_an_error(voc_folder, tmp_path):
    for path in (voc_folder / "JPEGImages").iterdir():
        cut_off(path)
    with pytest.raises(DataError, match=r"no picture without faults"):
        sources.open_data(str(voc_folder), split="train", data_dir=tmp_path, skip_bad=True)


def test_open_data_takes_a_format_and_tfds_names(tmp_path, write_set):
    write_set(tmp_path / "set", "csv")
    source = sources.open_data(str(tmp_path / "set"), split="val", data_dir=tmp_path, format="csv")
    assert source.classes == ("cat", "dog")
    folder = arrays.write_arrays({"val": source}, tmp_path / "records")
    for name in (f"tfds:{folder}", "tfds:converted", str(folder)):
        again = sources.open_data(name, split="val", data_dir=tmp_path / "records")
        assert len(again) == len(source)
