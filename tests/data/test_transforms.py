import cv2
import numpy as np
import pytest

from jaxdet.data import segments, transforms
from jaxdet.data.records import Annotation, Bitmap, Polygons
from jaxdet.data.transforms import View

CANVAS = (64, 96)
PLAIN = View((0, 0, 50, 70), (0, 0, 50, 70), (50, 70))


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


def rectangle(box):
    x1, y1, x2, y2 = box
    return Polygons((np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32),))


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
    assert transforms.resized_size(size, canvas) == want


def test_resized_size_fits_and_fills(rng):
    for _ in range(200):
        size = tuple(int(v) for v in rng.integers(1, 900, 2))
        got = transforms.resized_size(size, CANVAS)
        assert got[0] <= CANVAS[0] and got[1] <= CANVAS[1]
        assert got[0] == CANVAS[0] or got[1] == CANVAS[1]


def test_fitting_view_moves_boxes_with_pixels(rng):
    for _ in range(20):
        image, boxes = patch_scene(rng, *(int(v) for v in rng.integers(40, 120, 2)))
        view = transforms.fitting_view(image.shape[:2], CANVAS)
        moved = transforms.move_annotation(annotate(image, boxes), view)
        pixels = transforms.render(image, view)
        assert pixels.shape[:2] == moved.size == view.size
        np.testing.assert_allclose(moved.boxes[0], bright_box(pixels), atol=1.01)


def test_fitting_view_keeps_what_fits_exactly(rng):
    image, boxes = patch_scene(rng, *CANVAS)
    view = transforms.fitting_view(CANVAS, CANVAS)
    np.testing.assert_array_equal(transforms.render(image, view), image)
    moved = transforms.move_annotation(annotate(image, boxes), view)
    np.testing.assert_array_equal(moved.boxes, boxes)


def test_window_by_hand(rng):
    """A 20 x 20 window doubled: the box 5 right of and 10 below its corner."""
    image = rng.integers(0, 256, (50, 50, 3)).astype(np.uint8)
    boxes = np.array([[15, 20, 25, 60], [0, 0, 9, 9]], np.float32)
    view = View((10, 10, 30, 30), (0, 0, 40, 40), (40, 40))
    moved = transforms.move_annotation(annotate(image, boxes), view)
    np.testing.assert_array_equal(moved.boxes, [[10, 20, 30, 40], [0, 0, 0, 0]])
    np.testing.assert_array_equal(
        transforms.render(image, view), cv2.resize(image[10:30, 10:30], (40, 40))
    )


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flips(rng, flips):
    image, boxes = patch_scene(rng)
    view = PLAIN._replace(flip_x=flips[0], flip_y=flips[1])
    pixels = transforms.render(image, view)
    moved = transforms.move_annotation(annotate(image, boxes), view)
    np.testing.assert_array_equal(moved.boxes[0], bright_box(pixels))
    assert not np.array_equal(pixels, image)
    np.testing.assert_array_equal(transforms.render(pixels, view), image)
    again = transforms.move_annotation(moved, view)
    np.testing.assert_array_equal(again.boxes, boxes)


def test_frames_beyond_the_picture_by_hand():
    # 20 rows above and 10 columns to the left are missing; half the size.
    view = transforms.view_of_frame((-20, -10, 60, 70), (40, 40), (100, 70))
    assert view == View((0, 0, 60, 70), (10, 5, 40, 40), (40, 40))
    inside = transforms.view_of_frame((5, 6, 25, 36), (40, 60), (100, 70))
    assert inside == View((5, 6, 25, 36), (0, 0, 40, 60), (40, 60))


@pytest.mark.parametrize("frame", [(200, 0, 240, 40), (-40, 0, 0, 40), (0, -300, 600, 1)])
def test_frames_that_miss_the_picture(rng, frame):
    image = rng.integers(0, 256, (100, 70, 3)).astype(np.uint8)
    view = transforms.view_of_frame(frame, (40, 30), image.shape[:2])
    assert (transforms.render(image, view) == transforms.FILL).all()
    annotation = annotate(image, np.array([[1, 2, 60, 90]], np.float32))
    moved = transforms.move_annotation(annotation, view)
    assert len(transforms.drop_unseen(moved, annotation, view).labels) == 0


def test_boxes_follow_pixels_in_frames_beyond_the_picture(rng):
    for _ in range(30):
        image, boxes = patch_scene(rng)
        low = rng.integers(-60, 1, 2)
        high = rng.integers(60, 160, 2)
        frame = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        view = transforms.view_of_frame(frame, (64, 80), image.shape[:2])
        view = view._replace(flip_x=bool(rng.integers(2)))
        moved = transforms.move_annotation(annotate(image, boxes), view)
        pixels = transforms.render(image, view)
        np.testing.assert_allclose(
            moved.boxes[0], bright_box(np.where(pixels == transforms.FILL, 0, pixels)), atol=1.01
        )


def test_turn_by_hand():
    """A quarter turn, clockwise on the screen, about the middle of 40 x 40."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[2:6, 30:40] = 255  # Near the right end of the top edge.
    view = View((0, 0, 40, 40), (0, 0, 40, 40), (40, 40), angle=90.0)
    points = transforms.move_points(np.array([[30.0, 2.0], [40.0, 6.0]]), view)
    np.testing.assert_allclose(points, [[38, 30], [34, 40]], atol=1e-9)
    moved = transforms.move_annotation(annotate(image, np.float32([[30, 2, 40, 6]])), view)
    np.testing.assert_allclose(moved.boxes[0], [34, 30, 38, 40], atol=1e-4)
    np.testing.assert_array_equal(bright_box(transforms.render(image, view)), [34, 30, 38, 40])


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_turned_boxes_follow_the_pixels(rng, scale):
    """With a segment, the box is as tight as the pixels are."""
    for _ in range(15):
        image, boxes = patch_scene(rng, 90, 120)
        size = (round(90 * scale), round(120 * scale))
        view = View((0, 0, 90, 120), (0, 0, *size), size, angle=float(rng.uniform(-30, 30)))
        view = view._replace(flip_y=bool(rng.integers(2)))
        annotation = annotate(image, boxes, segments=(rectangle(boxes[0]),))
        moved = transforms.move_annotation(annotation, view)
        np.testing.assert_allclose(
            moved.boxes[0], bright_box(transforms.render(image, view)), atol=1.6
        )


def test_turned_boxes_without_segment_enclose(rng):
    image, boxes = patch_scene(rng)
    disk = np.zeros((50, 70), bool)
    center = (boxes[0, :2] + boxes[0, 2:]) / 2
    sides = boxes[0, 2:] - boxes[0, :2]
    y, x = np.mgrid[:50, :70] + 0.5
    disk = ((x - center[0]) / sides[0]) ** 2 + ((y - center[1]) / sides[1]) ** 2 < 0.25
    view = PLAIN._replace(angle=20.0)
    loose = transforms.move_annotation(annotate(image, boxes), view).boxes[0]
    tight = transforms.move_annotation(
        annotate(image, boxes, segments=(segments.bitmap_of(disk),)), view
    ).boxes[0]
    mixed = transforms.move_annotation(
        annotate(image, boxes.repeat(2, 0), segments=(None, segments.bitmap_of(disk))), view
    ).boxes
    np.testing.assert_array_equal(mixed, [loose, tight])
    assert (loose[:2] < tight[:2]).all() and (loose[2:] > tight[2:]).all()


def random_view(rng):
    return View(
        (3, 5, 43, 65),
        (2, 4, 50, 60),
        (56, 64),
        angle=float(rng.uniform(-40, 40)),
        flip_x=bool(rng.integers(2)),
        flip_y=bool(rng.integers(2)),
    )


def test_matrix_is_the_map_of_points(rng):
    for _ in range(20):
        view, points = random_view(rng), rng.uniform(-50, 100, (6, 2))
        matrix = transforms.view_matrix(view)
        want = np.column_stack([points, np.ones(6)]) @ matrix.T
        np.testing.assert_allclose(transforms.move_points(points, view), want, atol=1e-9)


def test_segments_and_keypoints_follow_the_pixels(rng):
    """A bright rectangle: its drawn segment covers it, its corners are keypoints."""
    for _ in range(20):
        image, boxes = patch_scene(rng)
        view = random_view(rng)
        x1, y1, x2, y2 = boxes[0]
        corners = np.array([[x1, y1, 2], [x2, y1, 2], [x2, y2, 1], [x1, y2, 0]], np.float32)
        bits = np.zeros((50, 70), bool)
        bits[int(y1) : int(y2), int(x1) : int(x2)] = True
        for segment in (rectangle(boxes[0]), Bitmap(bits, (0, 0))):
            annotation = annotate(image, boxes, segments=(segment,), keypoints=corners[None])
            moved = transforms.move_annotation(annotation, view)
            drawn = segments.draw_segment(moved.segments[0], moved.boxes[0], view.size)
            bright = transforms.render(image, view).max(axis=2) > 150
            if bright.sum() > 40:
                assert (drawn & bright).sum() / (drawn | bright).sum() > 0.8
            want = transforms.move_points(corners[:, :2], view)
            for got, point, visible in zip(moved.keypoints[0], want, (2, 2, 1, 0), strict=True):
                seen = visible and (point >= 0).all() and point[0] < 64 and point[1] < 56
                np.testing.assert_allclose(got, [*point, visible] if seen else [0, 0, 0])


def test_mirror_images_swap_left_and_right():
    keypoints = np.array([[[10, 5, 2], [20, 6, 1], [15, 9, 2]]], np.float32)
    image = np.zeros((50, 70, 3), np.uint8)
    annotation = annotate(image, np.float32([[0, 0, 30, 30]]), keypoints=keypoints)

    def moved(**flips):
        return transforms.move_annotation(
            annotation, PLAIN._replace(**flips), keypoint_pairs=((0, 1),)
        ).keypoints[0]

    np.testing.assert_array_equal(moved(), keypoints[0])
    np.testing.assert_array_equal(moved(flip_x=True), [[50, 6, 1], [60, 5, 2], [55, 9, 2]])
    np.testing.assert_array_equal(moved(flip_y=True), [[20, 44, 1], [10, 45, 2], [15, 41, 2]])
    # Both are half a turn, after which a left eye is still one.
    np.testing.assert_array_equal(
        moved(flip_x=True, flip_y=True), [[60, 45, 2], [50, 44, 1], [55, 41, 2]]
    )


def test_objects_hardly_in_view_are_difficult(rng):
    image = np.zeros((50, 70, 3), np.uint8)
    boxes = np.float32([[0, 0, 20, 20], [0, 0, 20, 20], [12, 0, 32, 20], [40, 0, 60, 20]])
    crowd = np.array([False, True, False, False])
    keypoints = np.tile(np.float32([[1, 1, 2]]), (4, 1, 1)) * np.arange(4)[:, None, None]
    annotation = annotate(
        image,
        boxes,
        crowd=crowd,
        segments=tuple(rectangle(box) for box in boxes),
        keypoints=keypoints.astype(np.float32),
        areas=np.ones(4, np.float32),
    )
    view = View((0, 16, 40, 36), (0, 0, 80, 40), (80, 40))
    moved = transforms.move_annotation(annotation, view)
    seen = transforms.drop_unseen(moved, annotation, view)
    assert seen.difficult.tolist() == [True, False, False] and seen.crowd.tolist() == [0, 1, 0]
    assert len(seen.segments) == len(seen.keypoints) == 3
    np.testing.assert_array_equal(seen.boxes, [[0, 0, 8, 40], [0, 0, 8, 40], [0, 0, 32, 40]])


def test_turned_out_of_view():
    image = np.zeros((50, 70, 3), np.uint8)
    annotation = annotate(image, np.float32([[0, 0, 10, 10], [30, 20, 40, 30]]))
    view = PLAIN._replace(angle=45.0)
    moved = transforms.move_annotation(annotation, view)
    seen = transforms.drop_unseen(moved, annotation, view)
    assert len(seen.boxes) == 1 and not seen.difficult.any()


def test_turning_an_object_thin_is_not_cutting_it():
    """A diagonal line in a square box, turned upright."""
    image = np.zeros((100, 100, 3), np.uint8)
    line = Polygons((np.array([[20, 20], [22, 20], [80, 78], [80, 80]], np.float32),))
    annotation = annotate(image, np.float32([[20, 20, 80, 80]]), segments=(line,))
    view = View((0, 0, 100, 100), (0, 0, 100, 100), (100, 100), angle=45.0)
    seen = transforms.drop_unseen(transforms.move_annotation(annotation, view), annotation, view)
    assert not seen.difficult.any()
    sides = seen.boxes[0, 2:] - seen.boxes[0, :2]
    np.testing.assert_allclose(sides, [np.sqrt(2), 60 * np.sqrt(2)], atol=0.01)


def test_a_part_of_a_picture_still_is_of_its_class():
    image = np.zeros((100, 80, 3), np.uint8)
    view = View((0, 0, 40, 20), (0, 0, 100, 80), (100, 80))
    for boxes, difficult in (
        ([[0, 0, 80, 100]], [False]),
        ([[0, 0, 80, 99]], [True]),
        ([[0, 0, 80, 100], [0, 0, 10, 10]], [True, False]),
    ):
        annotation = annotate(image, np.float32(boxes))
        moved = transforms.move_annotation(annotation, view)
        seen = transforms.drop_unseen(moved, annotation, view)
        np.testing.assert_array_equal(seen.difficult, difficult)


def test_without_objects(rng):
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    empty = annotate(
        image,
        np.zeros((0, 4), np.float32),
        segments=(),
        keypoints=np.zeros((0, 3, 3), np.float32),
    )
    for view in (PLAIN, random_view(rng)):
        moved = transforms.move_annotation(empty, view, keypoint_pairs=((0, 1),))
        assert transforms.drop_unseen(moved, empty, view).keypoints.shape == (0, 3, 3)
