import cv2
import numpy as np
import pytest

from jaxdet.viz import draw

CLASSES = ("cat", "dog")


def plain(height=120, width=160, value=90):
    return np.full((height, width, 3), value, np.uint8)


def boxes_of(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def drawn(image, box, label=1, **options):
    """The picture and which of its pixels have the class's colour."""
    labels = np.array([label], np.int32)
    got = draw.draw_boxes(image, boxes_of(box), labels, CLASSES, magnify=1, **options)
    return got, (got == draw.class_color(label)).all(axis=-1)


@pytest.mark.parametrize("side", ["left", "right", "bottom"])
def test_outline_lies_on_the_box(side):
    # Half-open: the last row and column of the box are 79 and 99. Lines are 2 to 3 px wide.
    _, colored = drawn(plain(), [40, 50, 100, 80])
    line = {"left": colored[50:80, 40], "right": colored[50:80, 99], "bottom": colored[79, 40:100]}
    assert line[side].all()
    assert not colored[54:76, 44:96].any()
    assert not colored[:, :38].any()
    assert not colored[:, 102:].any()
    assert not colored[82:].any()


def test_name_stands_above_or_inside():
    above, _ = drawn(plain(), [40, 50, 100, 80])
    assert (above[30:48] != 90).any()
    inside, _ = drawn(plain(), [40, 0, 100, 80])
    assert (inside[4:14, 44:60] != 90).any()


def test_score_makes_the_name_longer():
    without, _ = drawn(plain(), [20, 50, 140, 80])
    scored, _ = drawn(plain(), [20, 50, 140, 80], scores=np.array([0.5], np.float32))
    widths = [(np.ptp(np.nonzero((x[40:48] != 90).any(axis=(0, 2)))[0])) for x in (without, scored)]
    assert widths[1] > widths[0] + 15


def test_leaves_out_padding_and_leaves_the_input():
    image = plain()
    got, _ = drawn(image, [40, 50, 100, 80], valid=np.array([False]))
    np.testing.assert_array_equal(got, image)
    drawn(image, [40, 50, 100, 80])
    np.testing.assert_array_equal(image, plain())
    assert not np.shares_memory(got, image)


def test_ignored_is_grey_and_dashed():
    got, colored = drawn(plain(), [40, 50, 100, 80], ignored=np.array([True]))
    grey = (got == draw.IGNORED).all(axis=-1)
    assert not colored.any()
    assert 0.3 < grey[50:80, 40].mean() < 0.8
    assert 0.3 < grey[79, 40:100].mean() < 0.8


def test_the_best_score_is_on_top():
    boxes = boxes_of([40, 50, 100, 80], [40, 50, 100, 80])
    labels = np.array([1, 2], np.int32)
    for scores, top in (([0.9, 0.1], 1), ([0.1, 0.9], 2)):
        got = draw.draw_boxes(
            plain(), boxes, labels, CLASSES, scores=np.array(scores, np.float32), magnify=1
        )
        assert tuple(got[79, 70]) == draw.class_color(top)


def test_magnifies_small_pictures_only():
    none = (boxes_of(), np.zeros(0, np.int32), CLASSES)
    assert draw.draw_boxes(plain(128, 96), *none).shape == (512, 384, 3)
    assert draw.draw_boxes(plain(600, 800), *none).shape == (600, 800, 3)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    got = draw.draw_boxes(pixels, *none, magnify=3)
    np.testing.assert_array_equal(got, pixels.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize(
    "box",
    [[10, 10, 10, 10], [-50, -50, 900, 900], [500, 500, 600, 600], [9, 9, 2, 2], [np.nan] * 4],
    ids=str,
)
def test_degenerate_boxes_draw_something(box):
    for ignored in (False, True):
        got, _ = drawn(plain(), box, ignored=np.array([ignored]))
        assert got.shape == plain().shape
        assert (got != 90).any()


def test_names_a_bad_magnification():
    with pytest.raises(ValueError, match="got 0"):
        draw.draw_boxes(plain(), boxes_of(), np.zeros(0, np.int32), CLASSES, magnify=0)


def test_colors_are_fixed_and_distinct():
    colors = np.array([draw.class_color(label) for label in range(1, 21)])
    gaps = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
    assert gaps[~np.eye(20, dtype=bool)].min() > 30
    assert draw.class_color(1) == (255, 38, 38)


def test_contact_sheet_by_hand():
    images = [plain(4, 6, value) for value in (10, 20, 30)]
    sheet = draw.contact_sheet(images, 2, margin=2)
    assert sheet.shape == (2 + 4 + 2 + 4 + 2, 2 + 6 + 2 + 6 + 2, 3)
    assert sheet[2:6, 2:8].mean() == 10
    assert sheet[2:6, 10:16].mean() == 20
    assert sheet[8:12, 2:8].mean() == 30
    assert sheet.astype(int).sum() == 4 * 6 * 3 * 60 + 255 * (sheet.size - 3 * 4 * 6 * 3)


def test_contact_sheet_of_different_sizes_and_of_none():
    assert draw.contact_sheet([plain(4, 6), plain(9, 2)], 5, margin=0).shape == (9, 12, 3)
    blank = draw.contact_sheet([], 3)
    assert min(blank.shape[:2]) > 1 and (blank == draw.PAPER[0]).all()
    with pytest.raises(ValueError, match="got 0"):
        draw.contact_sheet([plain(4, 6)], 0)


def test_titles_stand_above_the_picture(rng):
    image = rng.integers(0, 255, (20, 200, 3)).astype(np.uint8)
    once, twice = (draw.titled(image, text) for text in ("step 1", "step 2"))
    np.testing.assert_array_equal(once[-20:], image)
    assert once.shape[0] > 30 and (once[:-20] == draw.PAPER[0]).mean() > 0.8
    assert np.any(once != twice)


def test_side_by_side_keeps_both_pictures():
    left, right = plain(50, 200, 10), plain(50, 200, 20)
    got = draw.side_by_side(left, right)
    for image, half in ((left, got[:, : got.shape[1] // 2]), (right, got[:, got.shape[1] // 2 :])):
        assert (half == image[0, 0]).all(axis=-1).sum() >= image[..., 0].size
        assert (half[:28] < 100).any()  # Ink.
    assert not np.array_equal(got[:28, :206], got[:28, 204:410])


def test_png_round_trip(tmp_path, rng):
    image = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path = draw.save_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
