import numpy as np
import pytest

from jaxdet.data import transforms, windows

FRAME = (-10, 20, 110, 220)  # 120 x 200
BOXES = np.array([[30, 0, 70, 40], [100, 50, 200, 100], [60, 60, 62, 63]], np.float32)


class Counting(np.random.Generator):
    """Counts the numbers drawn."""

    n = 0

    def uniform(self, low=0.0, high=1.0, size=None):
        self.n += int(np.prod(size or 1))
        return super().uniform(low, high, size)


def area(window):
    return (window[2] - window[0]) * (window[3] - window[1])


def overlap(window, box):
    """Oracle: IoU of a window and a box."""
    y1, x1, y2, x2 = window
    w = min(x2, box[2]) - max(x1, box[0])
    h = min(y2, box[3]) - max(y1, box[1])
    common = max(w, 0) * max(h, 0)
    return common / (area(window) + (box[2] - box[0]) * (box[3] - box[1]) - common)


def within(inner, outer):
    return (
        outer[0] <= inner[0] < inner[2] <= outer[2] and outer[1] <= inner[1] < inner[3] <= outer[3]
    )


def test_scale_jitter_law(rng):
    """Scales cover their range, evenly below and above 1; what fits is not cropped."""
    scales, cropped = [], 0
    for _ in range(400):
        window, size = windows.scale_jitter(rng, (128, 128), (64, 64), low=0.5, high=2.0)
        height = window[2] - window[0]
        scales.append(size[0] / height / 0.5)
        assert size[0] <= 64 and 0 <= window[0] < window[2] <= 128
        if height < 128:
            cropped += 1
            assert size == (64, 64)
    assert min(scales) < 0.55 and max(scales) > 1.85
    assert 150 < cropped < 250


def test_scale_jitter_of_one_keeps_the_picture(rng):
    canvas = (64, 96)
    for _ in range(50):
        size = tuple(int(v) for v in rng.integers(1, 900, 2))
        window, got = windows.scale_jitter(rng, size, canvas, low=1.0, high=1.0)
        assert window == (0, 0, *size) and got == transforms.resized_size(size, canvas)


def test_scale_jitter_into_a_smaller_room(rng):
    """The scale is that of the canvas, the crop that of the room."""
    for _ in range(50):
        window, size = windows.scale_jitter(
            rng, (100, 200), (50, 100), low=1.0, high=1.0, room=(20, 100)
        )
        assert size == (20, 100) and window[2] - window[0] == 40 and window[1::2] == (0, 200)


def test_expand(rng):
    frames = [windows.expand(rng, (30, 50)) for _ in range(300)]
    ratios = [(f[2] - f[0]) / 30 for f in frames]
    assert all(within((0, 0, 30, 50), f) for f in frames)
    assert min(ratios) < 1.2 and max(ratios) > 3.8
    assert all(abs((f[3] - f[1]) / 50 - r) < 0.04 for f, r in zip(frames, ratios, strict=True))
    # The picture lies at every side of its sheet.
    right = [-f[1] / (f[3] - f[1] - 50) for f, r in zip(frames, ratios, strict=True) if r > 1.5]
    assert min(right) < 0.1 and max(right) > 0.9


def test_patches_overlap_an_object_as_drawn(rng):
    for mode, least in ((1, 0.1), (2, 0.3), (3, 0.5), (4, 0.7), (5, 0.9)):
        seen = 0
        for _ in range(40):
            fixed = Fixed(rng.bit_generator.jumped(), first=(mode + 0.5) / 7)
            patch = windows.sample_patch(fixed, FRAME, BOXES)
            rng.uniform(size=300)
            if patch == FRAME:
                continue
            seen += 1
            assert within(patch, FRAME)
            good = [
                overlap(patch, box) >= least - 1e-6 and windows.holds_centers(patch, box[None])[0]
                for box in BOXES
            ]
            assert any(good)
        assert seen > 30 or mode > 3, mode


class Fixed(np.random.Generator):
    """The first number is given."""

    def __init__(self, bits, first):
        super().__init__(bits)
        self.first = first

    def uniform(self, low=0.0, high=1.0, size=None):
        return self.first if size is None else super().uniform(low, high, size)


def test_any_patch(rng):
    """Without objects the whole and any patch are left; shapes are 1/2 to 2, sides 0.3 to 1."""
    nothing = np.zeros((0, 4), np.float32)
    patches = [
        windows.sample_patch(Fixed(rng.bit_generator.jumped(i), 6.5 / 7), FRAME, nothing)
        for i in range(1, 200)
    ]
    assert all(within(patch, FRAME) for patch in patches)
    height, width = (
        np.array([(p[2] - p[0]) / 120 for p in patches]),
        np.array([(p[3] - p[1]) / 200 for p in patches]),
    )
    side, shape = np.sqrt(height * width), width / height
    assert side.min() > 0.28 and side.min() < 0.35 and side.max() > 0.9
    assert shape.min() < 0.7 and shape.max() > 1.5 and shape.min() > 0.48 and shape.max() < 2.1
    for mode in range(6):
        fixed = Fixed(rng.bit_generator.jumped(), (mode + 0.5) / 7)
        assert windows.sample_patch(fixed, FRAME, nothing) == FRAME


def test_centers_by_hand():
    got = windows.holds_centers((10, 50, 80, 150), BOXES)
    assert got.tolist() == [True, False, True]  # Centres (50, 20), (150, 75), (61, 61.5).


def keeps(crop, box):
    """Whether on each axis the crop holds the box, or lies inside a larger one."""
    spans = ((crop[0], crop[2], box[1], box[3]), (crop[1], crop[3], box[0], box[2]))
    return all((a <= c and d <= b) or (c <= a and b <= d) for a, b, c, d in spans)


def test_crops_keep_an_object(rng):
    kept = set()
    for _ in range(300):
        crop = windows.crop_with_object(rng, FRAME, BOXES, least=0.4)
        assert within(crop, FRAME)
        assert crop[2] - crop[0] >= 48 and crop[3] - crop[1] >= 80
        kept |= {i for i, box in enumerate(BOXES) if keeps(crop, box)}
        assert any(keeps(crop, box) for box in BOXES)
    assert kept == {0, 1, 2}


def test_crops_of_fractional_boxes_keep_them_whole(rng):
    for _ in range(200):
        low = rng.uniform(0, 60, 2)
        box = np.array([[*low, *(low + rng.uniform(1, 25, 2))]], np.float32)
        y1, x1, y2, x2 = windows.crop_with_object(rng, (0, 0, 90, 90), box, least=0.3)
        assert x1 <= box[0, 0] and y1 <= box[0, 1] and x2 >= box[0, 2] and y2 >= box[0, 3]


def test_crops_without_objects_are_anywhere(rng):
    nothing = np.zeros((0, 4), np.float32)
    crops = np.array([windows.crop_with_object(rng, FRAME, nothing, least=0.5) for _ in range(200)])
    assert crops[:, 0].min() < 0 and crops[:, 2].max() > 100
    assert crops[:, 1].min() < 30 and crops[:, 3].max() > 210


@pytest.mark.parametrize("boxes", [BOXES, BOXES[:0], BOXES[:1]], ids=len)
def test_fixed_numbers_of_draws(boxes):
    for draw, n in (
        (lambda rng: windows.expand(rng, (30, 50)), 3),
        (lambda rng: windows.sample_patch(rng, FRAME, boxes), 201),
        (lambda rng: windows.crop_with_object(rng, FRAME, boxes, least=0.5), 5),
        (lambda rng: windows.scale_jitter(rng, (9, 9), (9, 9), low=0.5, high=2.0), 3),
    ):
        for seed in range(10):
            rng = Counting(np.random.PCG64(seed))
            draw(rng)
            assert rng.n == n
