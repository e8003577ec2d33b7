import numpy as np
import pytest

from jaxdet.data import augment
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Annotation

CANVAS = (64, 96)


def patch_scene(rng, height=50, width=70):
    """A dark noisy picture with one bright rectangle, and its box."""
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    y1, x1 = rng.integers(5, height // 2), rng.integers(5, width // 2)
    y2, x2 = y1 + rng.integers(8, height // 2 - 5), x1 + rng.integers(8, width // 2 - 5)
    image[y1:y2, x1:x2] = 250
    return image, np.array([[x1, y1, x2, y2]], np.float32)


def bright_box(pixels):
    """Oracle: the box around what is bright, found in the pixels."""
    rows, columns = np.nonzero(pixels.max(axis=2) > 150)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def annotate(image, boxes, **fields):
    n = len(boxes)
    nothing = np.zeros(n, bool)
    whole = {"labels": np.ones(n, np.int32), "crowd": nothing, "difficult": nothing} | fields
    return Annotation(1, "test", image.shape[:2], boxes, **whole)


@pytest.mark.parametrize(
    ("size", "canvas", "want"),
    [
        ((480, 640), (320, 416), (312, 416)),
        ((640, 480), (320, 416), (320, 240)),
        ((128, 128), (128, 128), (128, 128)),
        ((10, 1000), (100, 100), (1, 100)),
        ((1, 1000), (100, 100), (1, 100)),  # Never without pixels.
    ],
)
def test_resized_size_by_hand(size, canvas, want):
    assert augment.resized_size(size, canvas) == want


def test_resized_size_fits_and_fills(rng):
    for _ in range(200):
        size = tuple(int(v) for v in rng.integers(1, 900, 2))
        got = augment.resized_size(size, CANVAS)
        assert got[0] <= CANVAS[0] and got[1] <= CANVAS[1]
        assert got[0] == CANVAS[0] or got[1] == CANVAS[1]


def test_fit_to_canvas_moves_boxes_with_pixels(rng):
    for _ in range(20):
        image, boxes = patch_scene(rng, *(int(v) for v in rng.integers(40, 120, 2)))
        placed = augment.fit_to_canvas(image, boxes, CANVAS)
        np.testing.assert_allclose(placed.boxes[0], bright_box(placed.pixels), atol=1.01)
        assert not placed.pixels[placed.size[0] :].any()
        assert not placed.pixels[:, placed.size[1] :].any()


def test_fit_to_canvas_keeps_what_fits_exactly(rng):
    image, boxes = patch_scene(rng, *CANVAS)
    placed = augment.fit_to_canvas(image, boxes, CANVAS)
    np.testing.assert_array_equal(placed.pixels, image)
    np.testing.assert_array_equal(placed.boxes, boxes)


def test_place_by_hand(rng):
    """A 20 x 20 window doubled: the box 5 right of and 10 below its corner."""
    image = rng.integers(0, 256, (50, 50, 3)).astype(np.uint8)
    boxes = np.array([[15, 20, 25, 60], [0, 0, 9, 9]], np.float32)
    placed = augment.place(image, boxes, (64, 64), window=(10, 10, 30, 30), size=(40, 40))
    np.testing.assert_array_equal(placed.boxes, [[10, 20, 30, 40], [0, 0, 0, 0]])
    assert not placed.pixels[40:].any()


@pytest.mark.parametrize("flip", [augment.horizontal_flip, augment.vertical_flip])
def test_flips(rng, flip):
    image, boxes = patch_scene(rng)
    flipped = flip(image, boxes)
    np.testing.assert_array_equal(flipped[1][0], bright_box(flipped[0]))
    assert not np.array_equal(flipped[0], image)
    again = flip(*flipped)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], boxes)


def test_scale_jitter_law(rng):
    """Scales cover their range, evenly below and above 1; what fits is not cropped."""
    scales, cropped = [], 0
    for _ in range(400):
        window, size = augment.scale_jitter(rng, (128, 128), (64, 64), low=0.5, high=2.0)
        height = window[2] - window[0]
        scales.append(size[0] / height / 0.5)
        assert size[0] <= 64 and 0 <= window[0] < window[2] <= 128
        if height < 128:
            cropped += 1
            assert size == (64, 64)
    assert min(scales) < 0.55 and max(scales) > 1.85
    assert 150 < cropped < 250


def test_scale_jitter_of_one_keeps_the_picture(rng):
    for _ in range(50):
        size = tuple(int(v) for v in rng.integers(1, 900, 2))
        window, got = augment.scale_jitter(rng, size, CANVAS, low=1.0, high=1.0)
        assert window == (0, 0, *size) and got == augment.resized_size(size, CANVAS)


def test_augmented_boxes_follow_the_pixels(rng):
    options = Augmentation(0.5, 0.5, scale=(0.7, 1.5))
    seen = 0
    for _ in range(60):
        image, boxes = patch_scene(rng)
        pixels, got = augment.augment(rng, image, annotate(image, boxes), CANVAS, options)
        if len(got.boxes):
            np.testing.assert_allclose(got.boxes[0], bright_box(pixels), atol=1.01)
            seen += 1
        assert not pixels[got.size[0] :].any() and not pixels[:, got.size[1] :].any()
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
    small = sides.prod(axis=1)[:-2] < augment.MIN_AREA_LEFT * 32 * 32
    np.testing.assert_array_equal(got.difficult[:-2], small)
    assert got.difficult[-2:].tolist() == [True, False]  # The crowd stays a crowd.
    assert got.crowd[-2:].tolist() == [False, True]


class Highest(np.random.Generator):
    """Draws the upper end of every range."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(() if size is None else size, high)


def test_color_jitter_by_hand():
    """Each option alone, all draws at their upper end."""
    image = np.array([[[100, 50, 0], [60, 60, 60]]], np.uint8)

    def jitter(**options):
        return augment.color_jitter(Highest(np.random.PCG64()), image, **options).astype(float)

    grey = np.array(image, float) @ augment.LUMA
    np.testing.assert_allclose(jitter(brightness=0.5), image * 1.5, atol=0.51)
    want = np.clip(image + 0.5 * (image - grey[..., None]), 0, 255)
    np.testing.assert_allclose(jitter(saturation=0.5), want, atol=0.51)
    want = np.clip(image + 0.5 * (image - grey.mean()), 0, 255)
    np.testing.assert_allclose(jitter(contrast=0.5), want, atol=0.51)
    np.testing.assert_allclose(jitter(hue=120.0), image[..., [2, 0, 1]], atol=0.51)


def test_color_jitter_keeps_greys_grey(rng):
    image = np.tile(rng.integers(0, 256, (9, 9, 1)), (1, 1, 3)).astype(np.uint8)
    got = augment.color_jitter(rng, image, saturation=0.9, hue=180.0)
    np.testing.assert_allclose(got.astype(int), image.astype(int), atol=1)


def test_same_draws_whatever_is_asked():
    """Options change what is done with the draws, not how many are made."""
    image = np.zeros((8, 8, 3), np.uint8)
    annotation = annotate(image, np.zeros((0, 4), np.float32))
    states = []
    for options in (Augmentation(), Augmentation(1.0, 1.0, (0.5, 2.0), 0.1, 0.1, 0.1, 9.0)):
        rng = np.random.default_rng(3)
        _, got = augment.augment(rng, image, annotation, CANVAS, options)
        assert got.boxes.shape == (0, 4)
        states.append(rng.bit_generator.state)
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"contrast": 2.0}]
)
def test_misuse(options):
    with pytest.raises(ValueError, match="must be"):
        Augmentation(**options)
