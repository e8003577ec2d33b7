import re

import cv2
import numpy as np
import pytest

from jaxdet.data import scenes

COUNT = 400
GOLDEN_NAMES = ["square", "ring", "cross", "star", "ring", "arrow", "circle", "star"]
GOLDEN_BOXES = [
    *([37, 66, 57, 94], [26, 65, 68, 118], [0, 0, 51, 46], [102, 51, 127, 92]),
    *([29, 8, 67, 49], [58, 34, 104, 96], [0, 73, 46, 126], [67, 80, 116, 123]),
]


def draw(index):
    return scenes.draw_scene(np.random.default_rng((11, index)))


@pytest.fixture(scope="module")
def drawn():
    return [draw(i) for i in range(COUNT)]


def single_objects(drawn):
    """(scene, row) of every object that is no group."""
    return [(s, i) for s in drawn for i in np.flatnonzero(~s.crowd)]


def test_same_generator_same_scene(drawn):
    for index in (0, 7, 31):
        for got, want in zip(draw(index), drawn[index], strict=True):
            np.testing.assert_array_equal(got, want)


def test_other_generator_other_scene(drawn):
    assert len({s.image.tobytes() for s in drawn}) == COUNT


def test_what_is_drawn_has_not_changed():
    # Files of the old drawing would be taken for the new one: raise Shapes.VERSION.
    scene = scenes.draw_scene(np.random.default_rng(5))
    assert [scenes.CLASSES[i - 1] for i in scene.labels] == GOLDEN_NAMES
    np.testing.assert_array_equal(scene.boxes, GOLDEN_BOXES)


def test_numbers_of_objects(drawn):
    counts = np.bincount([len(s.labels) for s in drawn], minlength=9)
    assert counts.shape == (9,)
    assert 1 <= counts[0] <= 0.05 * COUNT  # 2 % are empty.
    assert np.all(counts[1:] > 0.05 * COUNT)
    labels = np.concatenate([s.labels for s in drawn])
    share = np.bincount(labels, minlength=9)[1:] / len(labels)
    assert np.all(np.abs(share - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / len(labels)))


def test_sizes_of_objects(drawn):
    sides = np.array([s.boxes[i, 2:] - s.boxes[i, :2] for s, i in single_objects(drawn)])
    assert 30 <= np.median(sides) <= 40
    assert np.percentile(sides, 10) < 25 and np.percentile(sides, 90) > 45


def test_boxes_are_tight_around_masks(drawn):
    for scene in drawn[:100]:
        for mask, box in zip(scene.masks, scene.boxes, strict=True):
            x1, y1, x2, y2 = box.astype(int)
            assert np.count_nonzero(mask) == np.count_nonzero(mask[y1:y2, x1:x2]) > 0
            inside = mask[y1:y2, x1:x2]
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()


def test_masks_do_not_overlap(drawn):
    assert max(s.masks.sum(0).max() for s in drawn if len(s.masks)) == 1


def test_masks_hold_what_is_painted():
    # Without others' paint, the picture differs from its background exactly in the object.
    scene = next(s for s in map(draw, range(COUNT)) if len(s.labels) == 1 and not s.crowd.any())
    mask = cv2.erode(scene.masks[0].astype(np.uint8), np.ones((3, 3)))
    near = cv2.dilate(scene.masks[0].astype(np.uint8), np.ones((7, 7))) & ~cv2.dilate(
        scene.masks[0].astype(np.uint8), np.ones((3, 3))
    )
    inside = scene.image[mask == 1].astype(float)
    outside = scene.image[near == 1].astype(float)
    gaps = np.linalg.norm(inside[:, None] - np.median(outside, 0), axis=-1)
    assert np.mean(gaps > 60) > 0.95


def rectangle(x1, y1, x2, y2):
    """A thing of known place and area."""
    contour = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    keypoints = np.array([(x, y), (x, y1), (x2, y), (x, y2), (x1, y)], float)
    look = scenes._Look("red", "plain", np.zeros((128, 128, 3), np.float32))
    mask, area = scenes._coverage([contour], 128) >= 0.5, scenes._area([contour])
    return scenes._Thing(2, False, look, [contour], keypoints, 0.0, mask, area)


@pytest.mark.parametrize(("shown", "difficult"), [(15, True), (17, False)])
def test_difficult_below_two_fifths_by_hand(shown, difficult):
    # 40 px wide, of which the right object leaves `shown` columns.
    below, over = rectangle(20, 30, 60, 70), rectangle(20 + shown, 20, 90, 80)
    scene = scenes._annotate(np.zeros((128, 128, 3), np.uint8), [below, over])
    np.testing.assert_array_equal(scene.boxes, [[20, 30, 20 + shown, 70], [20 + shown, 20, 90, 80]])
    np.testing.assert_array_equal(scene.masks.sum((1, 2)), [shown * 40, (70 - shown) * 60])
    np.testing.assert_array_equal(scene.difficult, [difficult, False])
    np.testing.assert_array_equal(scene.keypoints[0, :, 2], [0, 0, 0, 0, 1])


def test_what_lies_beyond_the_border_counts_as_hidden():
    scene = scenes._annotate(np.zeros((128, 128, 3), np.uint8), [rectangle(-25, 10, 15, 50)])
    np.testing.assert_array_equal(scene.boxes, [[0, 10, 15, 50]])
    np.testing.assert_array_equal(scene.difficult, [True])
    np.testing.assert_array_equal(scene.keypoints[0, :, 2], [0, 0, 1, 0, 0])


def test_some_objects_are_difficult(drawn):
    objects = single_objects(drawn)
    hard = np.array([s.difficult[i] for s, i in objects])
    area = np.array([s.masks[i].sum() for s, i in objects])
    assert 0.005 < hard.mean() < 0.08
    assert area[hard].mean() < 0.6 * area[~hard].mean()


def test_keypoints_lie_on_their_object(drawn):
    distances = []
    for scene, i in single_objects(drawn[:100]):
        x, y, visible = scene.keypoints[i].T
        assert set(visible) <= {0, 1}
        inside = (x >= 0) & (x < 128) & (y >= 0) & (y < 128)
        assert np.all(inside[visible == 1])
        outline = cv2.distanceTransform(1 - scene.masks[i].astype(np.uint8), cv2.DIST_L2, 5)
        shown = np.flatnonzero(visible[1:]) + 1
        distances += list(outline[y[shown].astype(int), x[shown].astype(int)])
    # Less than half of the pixels at a sharp tip is covered, so the mask ends before it.
    assert np.percentile(distances, 90) < 1.5 and max(distances) < 4


def test_keypoints_go_round_clockwise_from_the_top(drawn):
    for scene, i in single_objects(drawn[:100]):
        x, y = scene.keypoints[i, 1:, :2].T - scene.keypoints[i, 0, :2][:, None]
        turns = np.diff(np.unwrap(np.arctan2(y, x)))
        assert np.all(turns > 0)  # y points down, so a growing angle is clockwise.
        if scenes.CLASSES[scene.labels[i] - 1] in ("circle", "square", "cross", "ring"):
            assert abs(x[0]) < 1.4 * -y[0]


def test_groups(drawn):
    groups = [(s, i) for s in drawn for i in np.flatnonzero(s.crowd)]
    assert 0.02 * COUNT < len(groups) < 0.12 * COUNT
    for scene, i in groups:
        assert scene.crowd.sum() == 1 and not scene.difficult[i]
        assert not scene.keypoints[i].any()
        assert cv2.connectedComponents(scene.masks[i].astype(np.uint8))[0] - 1 >= 3


def test_empty_scene_has_shapes_all_the_same():
    scene = scenes.draw_scene(np.random.default_rng(0), empty=1.0)
    assert scene.boxes.shape == (0, 4) and scene.masks.shape == (0, 128, 128)
    assert scene.keypoints.shape == (0, 5, 3) and scene.labels.shape == (0,)
    assert scene.caption == "an empty scene"


def test_size_scales_everything():
    scene = scenes.draw_scene(np.random.default_rng(1), size=256, empty=0.0)
    assert scene.image.shape == (256, 256, 3)
    assert 256 * 0.1 < np.median(scene.boxes[:, 2:] - scene.boxes[:, :2]) < 256 * 0.5


@pytest.mark.parametrize("wrong", [{"size": 32}, {"most": 0}, {"radii": (0.3, 0.2)}], ids=str)
def test_rejects(wrong, rng):
    with pytest.raises(ValueError, match=re.escape(str(*wrong.values()))):
        scenes.draw_scene(rng, **wrong)


# What tells the class: the outline, and nothing else.


def accuracy(features, labels):
    """Ridge regression onto one-hot classes: fitted on one half, scored on the other."""
    features = np.column_stack([features, np.ones(len(features))])
    half = len(labels) // 2
    fit, onehot = features[:half], np.eye(8)[labels[:half] - 1]
    ridge = 1e-2 * np.eye(fit.shape[1])
    weights = np.linalg.solve(fit.T @ fit + ridge, fit.T @ onehot)
    return np.mean(np.argmax(features[half:] @ weights, 1) + 1 == labels[half:])


def colour_histogram(pixels):
    return np.histogramdd(np.clip(pixels, 0, 255), bins=5, range=[(0, 256)] * 3)[0].ravel() / len(
        pixels
    )


def outline_spectrum(mask):
    """Strength of each rotational frequency at each radius: knows the shape, not its turn."""
    y, x = np.nonzero(mask)
    center, radius = (float(x.mean()), float(y.mean())), np.sqrt(mask.sum()) * 1.2
    polar = cv2.warpPolar(mask.astype(np.float32), (8, 64), center, radius, cv2.WARP_FILL_OUTLIERS)
    return np.abs(np.fft.rfft(polar, axis=0))[:8].ravel() / 64


def clear_objects(drawn):
    return [(s, i) for s, i in single_objects(drawn) if not s.difficult[i]]


def test_colours_do_not_tell_the_class(drawn):
    objects = clear_objects(drawn)
    labels = np.array([s.labels[i] for s, i in objects])
    pixels = [s.image[s.masks[i]] for s, i in objects]
    spread = np.sqrt(1 / 8 * 7 / 8 / (len(labels) // 2))
    blind = accuracy(np.stack([colour_histogram(p) for p in pixels]), labels)
    assert abs(blind - 1 / 8) < 4 * spread
    # The same classifier finds a tint that does depend on the class.
    tints = 120 * np.stack((*np.unravel_index(labels, (3, 3)), labels * 0), -1) - 120
    tinted = [colour_histogram(p * 0.2 + 100 + t) for p, t in zip(pixels, tints, strict=True)]
    assert accuracy(np.stack(tinted), labels) > 0.5


def test_outlines_tell_the_class(drawn):
    objects = clear_objects(drawn)
    labels = np.array([s.labels[i] for s, i in objects])
    assert accuracy(np.stack([outline_spectrum(s.masks[i]) for s, i in objects]), labels) > 0.75


@pytest.mark.parametrize("words", ["_PALETTE", "_TEXTURES"])
def test_look_is_independent_of_class(drawn, words):
    """Chi-squared of the table of looks by classes that captions tell of."""
    looks = list(getattr(scenes, words))
    table = np.zeros((len(looks), 8))
    for caption in (s.caption for s in drawn):
        for phrase in re.split(" above | below | left of | right of ", caption):
            *look, name = phrase.split()
            if name in scenes.CLASSES:
                row = [looks.index(w) for w in look if w in looks] or [looks.index("plain")]
                table[row[0], scenes.CLASSES.index(name)] += 1
    assert table.sum() > COUNT
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    freedom = (table.shape[0] - 1) * 7
    assert np.sum((table - expected) ** 2 / expected) < freedom + 4 * np.sqrt(2 * freedom)
