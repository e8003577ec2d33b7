import pytest

from jaxdet.data import splits


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("nuts/trainval.json", "trainval"),
        ("train/images/test", "test"),
        ("contest/straining.json", None),
    ],
)
def test_split_of(path, want):
    assert splits.split_of(path) == want


def test_choose():
    assert splits.choose("train", {"trainval", "test"}) == ("trainval", False)
    assert splits.choose("val", {"train", "val", "test"}) == ("val", False)
    assert splits.choose("val", {"train"}) == ("train", True)
    assert splits.choose("train", {"all"}) == ("all", True)
    assert splits.choose("trainval", {"train", "trainval"}) == ("trainval", False)
    for split, parts in (("tran", {"train"}), ("val", set()), ("trainval", {"train"})):
        with pytest.raises(ValueError):
            splits.choose(split, parts)


def test_divide_ignores_order():
    held_out = {"abcdefgh"[i] for i in splits.divide("abcdefgh", "val")}
    assert held_out == {"hgfedcba"[i] for i in splits.divide("hgfedcba", "val")}
    assert splits.divide("a", "train") == [0] and splits.divide("a", "val") == []


def test_a_held_out_part_alone_is_read_whole():
    assert splits.choose("val", {"val"}) == ("val", False)
    assert splits.choose("test", {"val"}) == ("val", False)
    assert splits.choose("val", {"val", "test"}) == ("val", False)
    with pytest.raises(ValueError, match="train on"):
        splits.choose("train", {"val", "test"})
