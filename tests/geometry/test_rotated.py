import functools
import pathlib

import cv2
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxdet.geometry import boxes as box_ops
from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms, rotated

# golden/make_rotated.py made the numbers.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "rotated.npz")
A, B = GOLDEN["pairs"][:, :5], GOLDEN["pairs"][:, 5:]

# A point at 0 as in padded rows, a line, sides of the wrong sign.
DEGENERATE = np.array(
    [[0, 0, 0, 0, 0], [5, 5, 0, 4, 30], [5, 5, -3, 4, 30], [5, 5, -3, -4, 0]], np.float32
)
# Areas and angles that float32 hardly holds, and some that it does not.
EXTREME = np.array(
    [
        [1e38, -1e38, 1e38, 1e38, 1e38],
        [-np.inf, 0, np.inf, 1, -np.inf],
        [0, 0, 1e38, 1e-38, 45],
        [0, 0, 1e9, 1e-6, 45],
        [5, 5, 3, 4, 1e9],
        [5, 5, 1e-9, 1e-9, 7],
    ],
    np.float32,
)

aligned_iou = jax.jit(rotated.iou)
pairwise_iou = jax.jit(rotated.pairwise_iou)


@jax.jit
def _values_and_gradients(a, b):
    values, gradients = jax.vjp(rotated.iou, a, b)
    return values, *gradients(jnp.ones_like(values))


def values_and_gradients(a, b, rows=128):
    """IoU of aligned boxes, its gradient by `a` and by `b`; compiled once."""
    padding = ((0, rows - len(a)), (0, 0))
    out = _values_and_gradients(*(np.pad(np.float32(boxes), padding) for boxes in (a, b)))
    return [np.array(array)[: len(a)] for array in out]


def polygon(box):
    """Oracle: corners of a box by the definition of its angle, float64."""
    x, y, w, h, angle = np.asarray(box, np.float64)
    turn = np.deg2rad(angle)
    along, across = [np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]
    halves = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
    return halves @ [along, across] + [x, y]


def half_plane(points, start, end):
    """The part of a convex polygon to the left of a line (Sutherland and Hodgman)."""
    (dx, dy), (x, y) = end - start, (points - start).T
    sides, out = dx * y - dy * x, []
    for i, (point, side) in enumerate(zip(points, sides, strict=True)):
        before, side_before = points[i - 1], sides[i - 1]
        if (side >= 0) != (side_before >= 0):
            out.append(before + (point - before) * side_before / (side_before - side))
        if side >= 0:
            out.append(point)
    return np.array(out).reshape(-1, 2)


def clipped_iou(a, b):
    """Oracle: cuts one polygon by the sides of the other, float64."""
    points, frame = polygon(a), polygon(b)
    for i in range(4):
        points = half_plane(points, frame[i], frame[(i + 1) % 4])
    x, y = (points - frame[0]).T
    shared = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
    union = float(a[2]) * float(a[3]) + float(b[2]) * float(b[3]) - shared
    return shared / union if union > 0 else 0.0


def clipped_ious(a, b):
    return np.array([clipped_iou(*pair) for pair in zip(a, b, strict=True)])


def random_boxes(rng, n, spread=50):
    numbers = [rng.uniform(0, spread, (n, 2)), rng.uniform(5, 60, (n, 2))]
    return np.hstack([*numbers, rng.integers(-4000, 4000, (n, 1)) / 10]).astype(np.float32)


def test_corners_by_hand(compiled):
    # (3, 4) / 5 is the direction of the width: up and to the right as one sees it.
    angle = np.rad2deg(np.arctan2(4, 3))
    got = compiled(rotated.corners)(jnp.array([20.0, 10.0, 10.0, 5.0, angle]))
    want = [[15, 12.5], [21, 4.5], [25, 7.5], [19, 15.5]]  # From the left end, clockwise.
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_corners_match_torchvision():
    got = jax.jit(rotated.corners)(A).reshape(-1, 8)
    np.testing.assert_allclose(got, GOLDEN["corners"], rtol=1e-6, atol=1e-4)


def test_quarter_turns_are_exact():
    boxes = jnp.array([[7.0, 9, 6, 2, angle] for angle in (90, -90, 450, 180, 36000, 36090)])
    got = rotated.enclosing_boxes(boxes)
    tall, wide = [6, 6, 8, 12], [4, 8, 10, 10]
    np.testing.assert_array_equal(got, [tall, tall, tall, wide, wide, tall])


def test_enclosing_boxes_touch_the_corners(compiled, rng):
    boxes = random_boxes(rng, 40)
    points = np.array([polygon(box) for box in boxes])
    want = np.hstack([points.min(1), points.max(1)])
    np.testing.assert_allclose(
        compiled(rotated.enclosing_boxes)(jnp.asarray(boxes)), want, atol=1e-4
    )


def test_enclosing_boxes_undo_from_boxes():
    boxes = jnp.array([[1.0, 2, 5, 9], [0, 0, 0, 0], [8, 2, 5, 9], [3, 9, 4, 7]])
    rows = rotated.from_boxes(boxes)
    np.testing.assert_array_equal(rows[0], [3, 5.5, 4, 7, 0])
    np.testing.assert_array_equal(rotated.enclosing_boxes(rows), boxes)
    np.testing.assert_array_equal(rotated.area(rows), box_ops.area(boxes))


def test_iou_by_hand(compiled):
    square = jnp.array([[50.0, 50, 10, 10, 0]])
    # An octagon; a quarter of the area; half of it; corner on corner.
    others = jnp.array(
        [[50.0, 50, 10, 10, 45], [55, 55, 10, 10, 90], [50, 45, 10, 10, 180], [60, 60, 10, 10, 0]]
    )
    octagon = 100 * (2 * 2**0.5 - 2)
    want = [[octagon / (200 - octagon), 25 / 175, 50 / 150, 0]]
    np.testing.assert_allclose(compiled(rotated.pairwise_iou)(square, others), want, rtol=1e-6)


def test_iou_matches_torchvision():
    # Torchvision takes points 1e-5 apart as one, whatever the size of the boxes, and in float32
    # has fewer digits for very thin ones: two cases in which clipping in float64 agrees with us.
    exact = clipped_ious(A, B)
    theirs_is_off = np.abs(GOLDEN["iou"] - exact) > 1e-5
    tiny, thin = A[:, 2] == np.float32(2e-4), A[:, 2] == 1000
    assert len(A) >= 90 and (GOLDEN["iou"] > 0).mean() > 0.8
    np.testing.assert_array_equal(theirs_is_off, tiny | thin)

    got = np.array(aligned_iou(A, B))
    np.testing.assert_allclose(got, exact, atol=1e-6)
    no_area = np.isnan(GOLDEN["iou"])
    np.testing.assert_array_equal(got[no_area], 0)
    agree = ~theirs_is_off & ~no_area
    np.testing.assert_allclose(got[agree], GOLDEN["iou"][agree], atol=1e-5)


def test_iou_matches_opencv(rng):
    a, b = random_boxes(rng, 30), random_boxes(rng, 30)

    def opencv_iou(a, b):
        turned = [((x, y), (w, h), -angle) for x, y, w, h, angle in np.float64([a, b])]
        _, points = cv2.rotatedRectangleIntersection(*turned)
        shared = 0.0 if points is None else cv2.contourArea(cv2.convexHull(points))
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    want = [opencv_iou(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(aligned_iou(a, b), want, atol=1e-4)  # Float32, sorted corners.


def test_iou_of_hard_boxes_matches_clipping(rng):
    # Sides from 0.1 to 1000 px, many of them on one line, angles equal or nearly so.
    n = 400
    a = np.hstack([rng.uniform(-50, 50, (n, 2)), 10 ** rng.uniform(-1, 3, (n, 2))])
    a = np.hstack([a, rng.choice([0, 30, 45, 90, -90, 10.5, 1e-3], (n, 1))])
    b = a.copy()
    b[:, :2] += rng.normal(0, 0.5, (n, 2)) * a[:, 2:4] * rng.integers(0, 2, (n, 1))
    b[:, 2:4] *= 10 ** (rng.uniform(-2, 2, (n, 2)) * rng.integers(0, 2, (n, 1)))
    b[:, 4] += rng.choice([0, 90, 180, 1e-3, 1, 45], n)
    a, b = a.astype(np.float32), b.astype(np.float32)
    got, want = np.array(aligned_iou(a, b)), clipped_ious(a, b)
    extent = np.linalg.norm(a[:, :2] - b[:, :2], axis=1) + np.minimum(a, b)[:, 2:4].max(1)
    thinness = extent / np.minimum(a, b)[:, 2:4].min(1)
    assert (np.abs(got - want) < 5e-7 * thinness).all()
    np.testing.assert_array_equal(got > 0, want > 1e-12)


def test_same_box_overlaps_wholly(rng):
    boxes = random_boxes(rng, 100, spread=4000)
    boxes[:50, 2] *= 0.01
    np.testing.assert_allclose(aligned_iou(boxes, boxes), 1, atol=1e-5)
    boxes[:, 4] = np.round(boxes[:, 4])
    turned = boxes + np.array([[0, 0, 0, 0, 180]], np.float32)
    np.testing.assert_allclose(aligned_iou(boxes, turned), 1, atol=1e-5)


def test_boxes_apart_overlap_exactly_nothing(rng):
    # Side by side along a turned axis: the boxes around them do overlap.
    a = random_boxes(rng, 200)
    turn = np.deg2rad(a[:, 4])
    step = (a[:, 2] + rng.uniform(1e-3, 5, 200)).astype(np.float32)
    b = a.copy()
    b[:, :2] += step[:, None] * np.stack([np.cos(turn), -np.sin(turn)], 1)
    np.testing.assert_array_equal(aligned_iou(a, b), 0)
    around = [rotated.enclosing_boxes(jnp.asarray(boxes)) for boxes in (a, b)]
    assert (iou_ops.iou(*around) > 0).mean() > 0.7


def test_iou_ignores_order_and_common_motion(rng):
    a, b = random_boxes(rng, 20), random_boxes(rng, 15)
    got = pairwise_iou(a, b)
    np.testing.assert_allclose(pairwise_iou(b, a).T, got, atol=1e-6)
    grid = [np.repeat(a, 15, axis=0), np.tile(b, (20, 1))]
    np.testing.assert_allclose(aligned_iou(*grid).reshape(20, 15), got, atol=1e-6)

    def quarter_turn(boxes):  # About the origin, then 4 times as large.
        x, y, w, h, angle = boxes.T
        return np.stack([4 * y, -4 * x, 4 * w, 4 * h, angle + 90], 1)

    np.testing.assert_allclose(pairwise_iou(quarter_turn(a), quarter_turn(b)), got, atol=2e-6)


def test_angle_zero_is_the_axis_aligned_iou(rng):
    low, side = rng.uniform(0, 50, (2, 100, 2)), rng.uniform(5, 40, (2, 100, 2))
    a, b = jnp.asarray(np.concatenate([low, low + side], axis=-1), jnp.float32)

    def total(a, b):
        return jnp.sum(iou_ops.iou(a, b))

    want, moves = iou_ops.iou(a, b), jax.jit(jax.grad(total, (0, 1)))(a, b)
    got, *grads = values_and_gradients(rotated.from_boxes(a), rotated.from_boxes(b))
    np.testing.assert_allclose(got, want, atol=1e-6)
    for grad, move in zip(grads, moves, strict=True):  # By the chain rule.
        np.testing.assert_allclose(grad[:, :2], move[:, :2] + move[:, 2:], atol=1e-6)
        np.testing.assert_allclose(grad[:, 2:4], (move[:, 2:] - move[:, :2]) / 2, atol=1e-6)


def test_gradients_match_differences_of_clipping():
    # Random pairs, and two with parallel edges: the kinks of the overlap are elsewhere.
    parallel = np.array(
        [[50, 40, 20, 10, 0, 53, 44, 22, 12, 0], [53, 44, 22, 12, 180, 50, 40, 20, 10, 0]]
    )
    pairs, step = np.vstack([GOLDEN["pairs"][-60:], parallel]), 1e-6
    _, *grads = values_and_gradients(*np.hsplit(pairs, 2))

    def overlaps(moved):
        return clipped_ious(*np.hsplit(pairs + moved, 2))

    moves = step * np.eye(10)
    want = np.stack([(overlaps(move) - overlaps(-move)) / (2 * step) for move in moves], axis=1)
    np.testing.assert_allclose(np.hstack(grads), want, atol=1e-6)
    assert (np.abs(want[:, 4]) > 1e-5).mean() > 0.7
    assert (np.abs(want[-2:, [4, 9]]) > 1e-4).all()


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_gradients_where_edges_coincide(angle):
    # A kink for every move: the mean of its two sides.
    box = np.array([[50, 40, 20, 10, angle]])
    _, *grads = values_and_gradients(box, box)
    np.testing.assert_allclose(grads, np.zeros((2, 1, 5)), atol=1e-6)


def product(a, b):
    return np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1))


def test_degenerate_boxes_overlap_nothing(rng):
    others = np.vstack([DEGENERATE, EXTREME, random_boxes(rng, 2), [[5, 5, 9, 9, 3]]])
    for a, b in (product(DEGENERATE, others), product(others, DEGENERATE)):
        for array in values_and_gradients(a, b):
            np.testing.assert_array_equal(array, 0)


def test_extreme_boxes_are_finite(rng):
    boxes = np.vstack([EXTREME, random_boxes(rng, 2), [[5, 5, 9, 9, 3]]])
    overlaps, *grads = values_and_gradients(*product(boxes, boxes))
    assert np.isfinite(grads).all() and (overlaps >= 0).all()
    assert np.isclose(overlaps, 1, atol=1e-5).sum() == 5  # Themselves, if not too thin or tiny.
    assert np.isfinite(rotated.enclosing_boxes(jnp.asarray(boxes, jnp.float32))).all()


def rows(kept):
    return np.array(kept.indices)[np.array(kept.valid)].tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_nms_matches_greedy_loop(rng, threshold):
    boxes, scores = random_boxes(rng, 40), rng.integers(0, 20, 40) / 20
    groups, valid = rng.integers(0, 3, 40), rng.uniform(size=40) < 0.9
    run = functools.partial(rotated.batched_nms, iou_threshold=threshold, max_outputs=40)
    got = jax.jit(run)(boxes, jnp.asarray(scores, jnp.float32), jnp.asarray(groups), valid)
    want: list[int] = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: -scores[i]):
        rivals = [j for j in want if groups[i] == groups[j]]
        if all(clipped_iou(boxes[j], boxes[i]) <= threshold for j in rivals):
            want.append(int(i))
    assert rows(got) == want
    assert 4 < len(want) < valid.sum()


def test_nms_at_angle_zero_is_that_of_boxes(rng):
    low = rng.uniform(0, 60, (3, 30, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 40, (3, 30, 2))], axis=-1)
    boxes = jnp.asarray(boxes, jnp.float32)
    scores, valid = jnp.asarray(rng.uniform(size=(3, 30)), jnp.float32), jnp.ones((3, 30), bool)
    options = {"iou_threshold": 0.4, "max_outputs": 30}
    want = jax.jit(jax.vmap(functools.partial(nms.nms, **options)))(boxes, scores, valid)
    got = jax.jit(jax.vmap(functools.partial(rotated.nms, **options)))(
        rotated.from_boxes(boxes), scores, valid
    )
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.valid, want.valid)
    assert (want.valid.sum(1) < 30).all()


def test_rejects_other_shapes(rng):
    boxes = jnp.asarray(random_boxes(rng, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        rotated.pairwise_iou(boxes[:, :4], boxes)
    with pytest.raises(jaxtyping.TypeCheckError):
        rotated.iou(boxes, boxes[:1])
