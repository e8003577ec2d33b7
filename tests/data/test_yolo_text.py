import numpy as np
import pytest

from jaxdet.data import check, coco_write, sources, yolo_text
from jaxdet.data.records import DataError
from jaxdet.data.reports import Report


@pytest.fixture
def one(tmp_path, write_picture):
    """Writes and reads one picture of 40 x 60: `one(lines, yaml)`."""
    write_picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()

    def read(lines, more="", **options):
        (tmp_path / "labels" / "a.txt").write_text(lines)
        path = tmp_path / "data.yaml"
        path.write_text(f"train: images\nnames: [cat, dog]\n{more}")
        data = yolo_text.read_data_yaml(path)
        return yolo_text.read_yolo("test", data.parts["train"], data, **options)

    return read


def test_a_box_by_hand(one):
    source = one("1 0.5 0.5 0.5 0.25\n\n0 0.25 0.25 0.5 0.5\n")
    a = source.annotations[0]
    np.testing.assert_allclose(a.boxes, [[15, 15, 45, 25], [0, 0, 30, 20]], atol=1e-5)
    assert a.labels.tolist() == [2, 1] and source.classes == ("cat", "dog")
    assert a.size == (40, 60) and a.segments is None and source.keypoint_names == ()


def test_boxes_are_of_the_picture_as_it_is_shown(one, tmp_path, write_turned):
    write_turned(tmp_path / "images" / "a.jpg")
    source = one("0 0.25 0.25 0.25 0.16666667")
    pixels, a = source[0]
    np.testing.assert_allclose(a.boxes, [[5, 10, 15, 20]], atol=1e-4)
    assert a.size == (60, 40) and pixels[11:19, 6:14].min() > 200 and pixels.mean() < 20
    (checked,) = check.check_data(tmp_path / "data.yaml").values()
    assert list(checked.report.remarks) == [check.UPRIGHT]
    # Others may read what is written of it as it is stored.
    coco_write.write_coco({"train": source}, tmp_path / "coco")
    again = sources.open_folder(tmp_path / "coco", split="train")
    np.testing.assert_array_equal(again[0][0], pixels)
    np.testing.assert_allclose(again[0][1].boxes, a.boxes, atol=1e-4)


def test_a_polygon_by_hand(one):
    (segment,) = one("0 0.1 0.1 0.5 0.1 0.5 0.6").annotations[0].segments
    np.testing.assert_allclose(segment.rings[0], [[6, 4], [30, 4], [30, 24]], atol=1e-5)


@pytest.mark.parametrize("numbers", [2, 3])
def test_keypoints(one, numbers):
    points = "0.5 0.5 0.25 0.75 0 0" if numbers == 2 else "0.5 0.5 2 0.25 0.75 1 0 0 0"
    source = one(f"1 0.5 0.5 1 1 {points}", f"kpt_shape: [3, {numbers}]\nflip_idx: [0, 2, 1]\n")
    want = [[30, 20, 2], [15, 30, 2 if numbers == 2 else 1], [0, 0, 0]]
    np.testing.assert_allclose(source.annotations[0].keypoints, [want], atol=1e-5)
    assert source.keypoint_pairs == ((1, 2),) and len(source.keypoint_names) == 3


def test_without_a_label_file(one, tmp_path, write_picture):
    write_picture(tmp_path / "images" / "b.jpg")
    source = one("0 0.5 0.5 0.5 0.5")
    assert [len(a.labels) for a in source.annotations] == [1, 0]
    assert source.notes == (f"{yolo_text.UNLABELLED}: 1 (b.txt).",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "must be a class and 4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "must be a class and 4 numbers"),
        ("0 0.5 0.5 0.5 wide", "must be a class and 4 numbers"),
        ("0 0.5 0.5 0.5 nan", "must be a class and 4 numbers"),
        ("2 0.5 0.5 0.5 0.5", "class 2 is none of 0 to 1"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is none of 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 is none"),
        ("0 30 20 10 10", "coordinates are relative"),
        ("0 0.1 0.1 0.5 0.1 0.5 60", "coordinates are relative"),
    ],
)
def test_faults_name_file_and_line(one, line, message):
    with pytest.raises(DataError, match=rf"a.txt: line 2.*{message}"):
        one(f"0 0.5 0.5 0.5 0.5\n{line}\n")


def test_all_faults_of_a_picture_are_told(one):
    report = Report()
    assert len(one("9 0.5 0.5 1 1\n8 0.5 0.5 1 1", report=report)) == 0
    assert len(report.faults) == 2 and len(report.bad) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "is not YAML"),
        ("- a\n- b", "is no table"),
        ("train: images\nnames: cat", "names must be"),
        ("train: images\nnames: {0: cat, 2: dog}", "names must be"),
        ("train: images\nnames: [cat]\nnc: 2", "nc is 2, but there are 1 names"),
        ("train: elsewhere\nnames: [cat]", "there is no 'elsewhere'"),
        ("train: 3\nnames: [cat]", "must be text"),
        ("train: images\nnames: [cat]\nkpt_shape: [2]", "kpt_shape"),
        ("train: images\nnames: [cat]\nkpt_shape: [2, 2]\nflip_idx: [0, 0]", "flip_idx"),
        ("a: &a [1]\ntrain: images\nnames: *a", "has aliases"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_faults_of_the_yaml(one, tmp_path, text, message):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"data.yaml: .*{message}"):
        yolo_text.read_data_yaml(path)


def test_where_parts_are(tmp_path, write_picture):
    """A root, lists of pictures, several folders, and what Roboflow writes (one `..` too many)."""
    for name in ("r/images/train/a.jpg", "valid/images/b.jpg", "r/images/more/c.jpg"):
        write_picture(tmp_path / name)
    (tmp_path / "r" / "list.txt").write_text("images/train/a.jpg\n\nimages/more/c.jpg\n")
    path = tmp_path / "data.yaml"
    text = "path: r\ntrain: [images/train, images/more]\nval: ../valid/images\ntest: list.txt\n"
    path.write_text(f"{text}names: [cat]\n")
    data = yolo_text.read_data_yaml(path)

    def names(part):
        source = yolo_text.read_yolo("x", data.parts[part], data)
        return [a.name for a in source.annotations]

    assert names("train") == ["c.jpg", "a.jpg"] and names("val") == ["b.jpg"]
    assert sorted(names("test")) == ["a.jpg", "c.jpg"]


def test_the_last_images_folder_is_labels(tmp_path):
    path = tmp_path / "images" / "set" / "images" / "train" / "images.jpg"
    want = tmp_path / "images" / "set" / "labels" / "train" / "images.txt"
    assert yolo_text.labels_of(path) == want
    assert yolo_text.labels_of(tmp_path / "x" / "a.png") == tmp_path / "x" / "a.txt"
