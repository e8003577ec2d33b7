import dataclasses

import numpy as np
import pytest
from test_transforms import CANVAS, annotate, bright_box, patch_scene, rectangle

from jaxdet.data import augment, compose, segments, transforms
from jaxdet.data.augment import Augmentation

EVERYTHING = Augmentation(
    0.5,
    0.5,
    scale=(0.7, 1.4),
    brightness=0.1,
    hsv=(0.0, 0.1, 0.1),
    distort=0.5,
    rotation=20.0,
    expand=0.3,
    patch=0.5,
    crop=0.7,
)
COMPOSED = dataclasses.replace(EVERYTHING, mosaic=0.5, copy_paste=0.5)


def scene(rng):
    """A patch scene with all that can be known of it."""
    image, boxes = patch_scene(rng)
    x1, y1, x2, y2 = boxes[0]
    keypoints = np.array([[[x1, y1, 2], [x2 - 1, y2 - 1, 1]]], np.float32)
    return image, annotate(image, boxes, segments=(rectangle(boxes[0]),), keypoints=keypoints)


def draw_scene(rng):
    return scene(rng)


def test_augmented_boxes_follow_the_pixels(rng):
    options = Augmentation(0.5, 0.5, scale=(0.7, 1.5))
    seen = 0
    for _ in range(60):
        image, boxes = patch_scene(rng)
        pixels, got = augment.augment(rng, image, annotate(image, boxes), CANVAS, options)
        if len(got.boxes):
            np.testing.assert_allclose(got.boxes[0], bright_box(pixels), atol=1.01)
            seen += 1
        assert pixels.shape[:2] == got.size
        assert got.size[0] <= CANVAS[0] and got.size[1] <= CANVAS[1]
    assert seen > 40


def test_everything_follows_the_pixels(rng):
    """All that moves pictures at once, colours left alone: box, segment and keypoints."""
    options = dataclasses.replace(EVERYTHING, brightness=0.0, hsv=(0.0, 0.0, 0.0), distort=0.0)
    seen = 0
    for _ in range(80):
        image, known = scene(rng)
        pixels, got = augment.augment(rng, image, known, CANVAS, options, keypoint_pairs=((0, 1),))
        bright = pixels.min(axis=2) > 150
        assert pixels.shape[:2] == got.size
        if bright.sum() < 60:
            continue
        seen += 1
        np.testing.assert_allclose(got.boxes[0], bright_box(pixels * bright[..., None]), atol=2.01)
        drawn = segments.draw_segment(got.segments[0], got.boxes[0], got.size)
        assert (drawn & bright).sum() / (drawn | bright).sum() > 0.7
        for x, y, visible in got.keypoints[0]:
            low, high = got.boxes[0, :2] - 2, got.boxes[0, 2:] + 2
            assert not visible or ((low <= (x, y)) & ((x, y) <= high)).all()
    assert seen > 40


def test_objects_out_of_view(rng):
    """With a scale of 4 about a sixteenth is seen; boxes tile the picture."""
    image = np.full((64, 64, 3), 200, np.uint8)
    low = np.stack(np.meshgrid(np.arange(0, 64, 8), np.arange(0, 64, 8)), -1).reshape(-1, 2)
    boxes = np.hstack([low, low + 8]).astype(np.float32)
    boxes = np.vstack([boxes, [[0, 0, 64, 64], [0, 0, 64, 64]]]).astype(np.float32)
    crowd = np.arange(len(boxes)) == 65
    options = Augmentation(0.0, scale=(4.0, 4.0))
    _, got = augment.augment(
        rng, image, annotate(image, boxes, crowd=crowd, areas=None), (64, 64), options
    )
    sides = got.boxes[:, 2:] - got.boxes[:, :2]
    assert (sides > 0).all() and len(got.boxes) < 16
    small = sides.prod(axis=1)[:-2] < transforms.MIN_AREA_LEFT * 32 * 32
    np.testing.assert_array_equal(got.difficult[:-2], small)
    assert got.difficult[-2:].tolist() == [True, False]  # The crowd stays a crowd.
    assert got.crowd[-2:].tolist() == [False, True]


def test_patches_leave_objects_with_their_centre_outside_undecided(rng):
    image = np.zeros((100, 100, 3), np.uint8)
    low = np.stack(np.meshgrid(np.arange(0, 100, 20), np.arange(0, 100, 20)), -1).reshape(-1, 2)
    boxes = np.hstack([low, low + 20]).astype(np.float32)
    options = Augmentation(0.0, patch=1.0)
    cut = 0
    for _ in range(40):
        _, got = augment.augment(rng, image, annotate(image, boxes), (100, 100), options)
        inside = (got.boxes > 0.01).all(axis=1) & (
            got.boxes[:, 2:] < np.array(got.size)[::-1] - 0.01
        ).all(axis=1)
        assert not got.difficult[inside].any()
        sides = got.boxes[:, 2:] - got.boxes[:, :2]
        whole = sides.max(axis=0)  # Some object is whole in each direction.
        half = (sides < 0.49 * whole).any(axis=1)
        np.testing.assert_array_equal(got.difficult, half)
        cut += half.sum()
    assert cut > 20


def test_same_draws_whatever_is_asked():
    """Options change what is done with the draws, not how many are made."""
    image = np.zeros((8, 8, 3), np.uint8)
    annotation = annotate(image, np.zeros((0, 4), np.float32))
    states = []
    for options in (
        Augmentation(),
        Augmentation(1.0, 1.0, (0.5, 2.0), 0.1, 0.1, 0.1, 9.0),
        EVERYTHING,
        COMPOSED,
        dataclasses.replace(COMPOSED, mosaic=1.0, copy_paste=1.0),
    ):
        rng = np.random.default_rng(3)
        _, got = augment.augment(rng, image, annotation, CANVAS, options, partner=draw_scene)
        assert len(got.boxes) == 0 or options.mosaic or options.copy_paste
        states.append(rng.bit_generator.state)
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox])
def test_a_variant_is_a_function_of_its_generator(rng, bits):
    image, known = scene(rng)
    for seed in range(6):
        one, two = (
            augment.augment(
                np.random.Generator(bits(seed)), image, known, CANVAS, COMPOSED, partner=draw_scene
            )
            for _ in range(2)
        )
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1].boxes, two[1].boxes)
        np.testing.assert_array_equal(one[1].keypoints, two[1].keypoints)


def test_options_do_not_disturb_each_other(rng):
    """Colours are drawn from their own place: the picture is turned alike with and without."""
    image, known = scene(rng)
    turned = Augmentation(rotation=30.0, scale=(0.5, 1.0))
    options = (turned, dataclasses.replace(turned, distort=0.5, hsv=(0.1, 0.2, 0.2)))
    one, two = (
        augment.augment(np.random.default_rng(5), image, known, CANVAS, option)
        for option in options
    )
    np.testing.assert_array_equal(one[1].boxes, two[1].boxes)
    assert not np.array_equal(one[0], two[0])


def test_mosaic_shows_four_pictures(rng):
    image, known = scene(rng)
    options = Augmentation(mosaic=1.0, mosaic_scale=(0.5, 0.6))
    counts = []
    for _ in range(30):
        pixels, got = augment.augment(rng, image, known, (96, 96), options, partner=draw_scene)
        assert pixels.shape[:2] == got.size == (96, 96)
        bright = pixels.min(axis=2) > 150
        covered = np.zeros((96, 96), bool)
        for i in range(len(got.labels)):
            covered |= segments.draw_segment(got.segments[i], got.boxes[i], got.size)
        assert (bright & covered).sum() > 0.85 * bright.sum()
        counts.append(len(got.labels))
    assert max(counts) == 4 == Augmentation(mosaic=1.0).n_pictures


def test_pasted_objects(rng):
    image = np.full((50, 70, 3), 100, np.uint8)
    empty = annotate(
        image, np.zeros((0, 4), np.float32), segments=(), keypoints=np.zeros((0, 2, 3), np.float32)
    )
    options = Augmentation(copy_paste=1.0, scale=(0.8, 1.0))
    counts = []
    for _ in range(40):
        pixels, got = augment.augment(rng, image, empty, CANVAS, options, partner=draw_scene)
        assert pixels.shape[:2] == got.size
        counts.append(len(got.labels))
        if len(got.labels):
            drawn = segments.draw_segment(got.segments[0], got.boxes[0], got.size)
            np.testing.assert_array_equal(drawn, (pixels != 100).any(axis=2))
            assert (pixels[drawn] > 150).mean() > 0.7
    assert 8 < sum(counts) < 32  # A chance of one half.


def test_probabilities(rng):
    """How often pictures are mosaics is as asked."""
    image, known = scene(rng)
    n = 0
    for _ in range(100):
        _, got = augment.augment(
            rng, image, known, (64, 64), Augmentation(mosaic=0.3), partner=draw_scene
        )
        n += got.size == (64, 64)  # The picture alone is 46 high.
    assert 15 < n < 45


def test_partners_are_asked_for(rng):
    image, known = scene(rng)
    for options in (Augmentation(mosaic=0.1), Augmentation(copy_paste=0.1)):
        with pytest.raises(ValueError, match="partner"):
            augment.augment(rng, image, known, CANVAS, options)


def test_cached_pictures_are_not_written_on(rng):
    image, known = scene(rng)
    before = image.copy()
    options = dataclasses.replace(COMPOSED, mosaic=1.0, copy_paste=1.0)
    for option in (Augmentation(), options):
        for seed in range(5):
            augment.augment(
                np.random.default_rng(seed), image, known, (50, 70), option, partner=draw_scene
            )
    np.testing.assert_array_equal(image, before)


def test_cut_leaves_a_tile_on_each_side():
    for canvas in ((4, 4), (32, 1000)):
        for at in augment.CUT:
            cut = (round(at * canvas[0]), round(at * canvas[1]))
            assert all(min(tile) > 0 for tile in compose.tile_sizes(cut, canvas))


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"mosaic_scale": (2.0, 1.0)},
        {"contrast": 2.0},
        {"mosaic": -0.1},
        {"crop": 0.0},
        {"hsv": (0.0, 2.0, 0.0)},
    ],
)
def test_misuse(options):
    with pytest.raises(ValueError, match="must be"):
        Augmentation(**options)
