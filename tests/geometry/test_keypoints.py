import functools
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.geometry import keypoints as keypoint_ops

# Made by tests/golden/make_keypoints.py: 64 boxes of every kind.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/keypoints.npz")


def golden_maps(name, unit):
    maps = jnp.asarray(GOLDEN[f"{name}heatmaps"] / np.float32(unit), jnp.float32)
    return maps, jnp.asarray(GOLDEN[f"{name}boxes"])


def cubic(d):
    """Oracle: Keys' kernel with a = -3/4."""
    d, a = abs(d), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def stretch(heatmap, height, width):
    """Oracle: bicubic convolution in float64, tap by tap; ends are repeated."""
    axes = []
    for n_points, n_cells in ((height, heatmap.shape[0]), (width, heatmap.shape[1])):
        weights = np.zeros((n_points, n_cells))
        for point in range(n_points):
            place = (point + 0.5) * n_cells / n_points - 0.5
            for cell in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                weights[point, np.clip(cell, 0, n_cells - 1)] += cubic(place - cell)
        axes.append(weights)
    return axes[0] @ heatmap @ axes[1].T


def decode_one(heatmap, box):
    """Oracle: all points of a box, the first of the highest."""
    w, h = max(box[2] - box[0], 1), max(box[3] - box[1], 1)
    points = stretch(heatmap, int(np.ceil(h)), int(np.ceil(w)))
    row, column = np.unravel_index(points.argmax(), points.shape)
    x, y = box[0] + (column + 0.5) * w / np.ceil(w), box[1] + (row + 0.5) * h / np.ceil(h)
    return x, y, points.max()


def newly_compiled():
    """With the constants of the module as they are now."""
    return jax.jit(lambda *inputs: keypoint_ops.heatmaps_to_keypoints(*inputs))


def test_cells_by_hand(compiled):
    keypoints = jnp.array(
        [
            [[10, 20, 2], [14.9, 20, 1], [15, 29.9, 1], [30, 60, 2], [12, 21, 0]],
            [[9.9, 20, 2], [30.1, 30, 2], [20, 60.1, 2], [20, 40, 2], [30, 20, 1]],
        ],
        jnp.float32,
    )
    boxes = jnp.array([[10.0, 20, 30, 60]] * 2)  # Cells are 5 wide and 10 high.
    to_heatmaps = functools.partial(keypoint_ops.keypoints_to_heatmaps, size=4)
    cells, valid = compiled(to_heatmaps)(keypoints, boxes)
    np.testing.assert_array_equal(cells, [[0, 0, 1, 15, 0], [0, 0, 0, 10, 3]])
    np.testing.assert_array_equal(valid, [[1, 1, 1, 1, 0], [0, 0, 0, 1, 1]])


@pytest.mark.parametrize("size", [8, 56])
def test_cells_match_torchvision(compiled, size):
    to_heatmaps = functools.partial(keypoint_ops.keypoints_to_heatmaps, size=size)
    cells, valid = compiled(to_heatmaps)(*map(jnp.asarray, (GOLDEN["points"], GOLDEN["boxes"])))
    np.testing.assert_array_equal(valid, GOLDEN[f"valid_{size}"])
    np.testing.assert_array_equal(cells, GOLDEN[f"cells_{size}"])
    assert 0.3 < valid.mean() < 0.8


def test_keypoints_match_torchvision():
    found, scores = jax.jit(keypoint_ops.heatmaps_to_keypoints)(*golden_maps("", 64))
    np.testing.assert_allclose(found, GOLDEN["found"], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(scores, GOLDEN["scores"], rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("block", [5, 64])
def test_the_first_of_equal_points_is_found(block, monkeypatch):
    monkeypatch.setattr(keypoint_ops, "BLOCK", block)
    maps, boxes = golden_maps("exact_", 1)
    found, scores = newly_compiled()(maps, boxes)
    np.testing.assert_array_equal(found, GOLDEN["exact_found"])
    np.testing.assert_array_equal(scores, GOLDEN["exact_scores"])
    tied = [
        np.sum(points == points.max()) > 1
        for points in (stretch(maps[i, :, :, 0], 32, 32) for i in range(len(maps)))
    ]
    assert sum(tied) > 10


def test_keypoints_match_oracle(rng):
    maps = rng.normal(size=(9, 6, 5, 2)).astype(np.float32)
    low = rng.uniform(-30, 90, (9, 2))
    boxes = np.hstack([low, low + rng.uniform(0.5, 200, (9, 2))]).astype(np.float32)
    found, scores = jax.jit(keypoint_ops.heatmaps_to_keypoints)(*map(jnp.asarray, (maps, boxes)))
    for i, k in np.ndindex(9, 2):
        x, y, top = decode_one(maps[i, :, :, k].astype(float), boxes[i].astype(float))
        np.testing.assert_allclose(found[i, k], [x, y, 1], atol=1e-3)
        np.testing.assert_allclose(scores[i, k], top, rtol=1e-5)


def test_keypoints_come_back_from_their_cells(rng):
    low = rng.uniform(-30, 90, (20, 2))
    boxes = np.hstack([low, low + rng.uniform(30, 90, (20, 2))]).astype(np.float32)
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
    xy = boxes[:, None, :2] + rng.random((20, 3, 2)) * sides
    keypoints = np.concatenate([xy, np.ones((20, 3, 1))], axis=-1).astype(np.float32)
    cells, valid = keypoint_ops.keypoints_to_heatmaps(
        *map(jnp.asarray, (keypoints, boxes)), size=10
    )
    assert valid.all()
    maps = np.moveaxis(np.eye(100, dtype=np.float32)[np.array(cells)], 1, -1)
    maps = jnp.asarray(maps.reshape(20, 10, 10, 3))
    found, _ = jax.jit(keypoint_ops.heatmaps_to_keypoints)(maps, jnp.asarray(boxes))
    # In the same cell, or half a pixel outside: the middle of the pixel that is cut by its border.
    assert (np.abs(found - keypoints)[..., :2] <= sides / 10 + 0.5).all()


def test_vmap_is_image_by_image():
    maps, boxes = golden_maps("exact_", 1)
    batch = jax.vmap(keypoint_ops.heatmaps_to_keypoints)
    found, scores = jax.jit(batch)(maps.reshape(4, 16, 8, 8, 2), boxes.reshape(4, 16, 4))
    np.testing.assert_array_equal(found.reshape(64, 2, 3), GOLDEN["exact_found"])
    np.testing.assert_array_equal(scores.reshape(64, 2), GOLDEN["exact_scores"])


def test_bad_boxes_and_maps_harm_no_others(rng, monkeypatch):
    monkeypatch.setattr(keypoint_ops, "MAX_SIDE", 200)
    inf, nan = np.inf, np.nan
    boxes = jnp.array(
        [
            *([nan, 0, 5, 5], [0, 0, inf, 5], [0, -inf, 5, 5], [9, 9, -9, -9]),
            *([0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 1e9, 1e9], [10, 10, 30, 40]),
        ]
    )
    maps = jnp.asarray(rng.normal(size=(8, 6, 5, 2)), jnp.float32)
    maps = maps.at[4].set(nan).at[5].set(-inf)
    run = newly_compiled()
    found, scores = run(maps, boxes)
    again, same = run(maps, jnp.broadcast_to(boxes[-1], boxes.shape))
    np.testing.assert_array_equal(found[-1], again[-1])
    np.testing.assert_array_equal(scores[-1], same[-1])
    assert np.isfinite(scores[:4]).all()
    for maps_without, at in ((4, [0.5, 0.5, 1]), (5, [0.5, 0.5, 1])):
        np.testing.assert_array_equal(found[maps_without], [at, at])
        assert (scores[maps_without] == -inf).all()
    # A wild box is looked at on MAX_SIDE points a side.
    steps = np.array(found[6, :, :2]) / (1e9 / 200) - 0.5
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    x, y, top = decode_one(np.array(maps[6, :, :, 0], float), [0, 0, 200, 200])
    np.testing.assert_allclose(found[6, 0, :2], [x * 5e6, y * 5e6], rtol=1e-5)
    np.testing.assert_allclose(scores[6, 0], top, rtol=1e-5)


def test_no_boxes():
    found, scores = keypoint_ops.heatmaps_to_keypoints(jnp.zeros((0, 7, 7, 17)), jnp.zeros((0, 4)))
    assert found.shape == (0, 17, 3) and scores.shape == (0, 17)


def test_memory_does_not_grow_with_boxes_or_their_area():
    maps, boxes = jnp.zeros((100, 28, 28, 5)), jnp.zeros((100, 4))
    program = jax.jit(keypoint_ops.heatmaps_to_keypoints).lower(maps, boxes).compile()
    block = 5 * keypoint_ops.BLOCK**2 * 4
    assert program.memory_analysis().temp_size_in_bytes < 2 * maps.nbytes + 16 * block


def test_gaussian_by_hand(compiled):
    gaussians = functools.partial(keypoint_ops.gaussian_heatmaps, size=(5, 7), sigma=2)
    got = compiled(gaussians)(jnp.array([[2.5, 1.5, 1], [2.5, 1.5, 0]]))
    assert got.shape == (5, 7, 2) and not got[..., 1].any()
    np.testing.assert_allclose(got[1, 2, 0], 1)
    np.testing.assert_allclose(got[1, 4, 0], np.exp(-4 / 8), rtol=1e-6)
    np.testing.assert_allclose(got[4, 6, 0], np.exp(-(16 + 9) / 8), rtol=1e-6)


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(keypoints, size, sigma):
    return keypoint_ops.gaussian_heatmaps(keypoints, size=size, sigma=sigma)


decode = jax.jit(keypoint_ops.decode_gaussian)


def random_keypoints(rng, shape, size):
    xy = rng.uniform(0, 1, (*shape, 2)) * np.array([size[1], size[0]])
    return jnp.asarray(np.concatenate([xy, np.full((*shape, 1), 2)], axis=-1), jnp.float32)


@pytest.mark.parametrize("sigma", [0.7, 1, 3])
def test_decode_inverts_gaussians(rng, sigma):
    size = (16, 12)
    keypoints = random_keypoints(rng, (4, 25), size)
    maps = draw(keypoints, size, sigma)
    found, scores = decode(maps)
    error = np.abs(found - keypoints)[..., :2]
    assert error.max() <= 0.5 + 1e-4
    # Exact but along an axis on which the keypoint is in an outermost cell.
    xy = np.array(keypoints[..., :2])
    inner = (xy > 1) & (xy < np.array([size[1], size[0]]) - 1)
    assert error[inner].max() < 2e-3 and inner.mean() > 0.7
    assert (found[..., 2] == 1).all() and (scores > np.exp(-0.25 / sigma**2) - 1e-5).all()


def test_decode_between_cells_by_hand(compiled):
    # On the border of four cells all are equal: the first is moved half a cell. In a corner cell
    # there is no neighbour to compare with.
    maps = draw(jnp.array([[4.0, 3, 1], [0.2, 7.9, 1]]), (8, 8), 1)
    found, _ = compiled(keypoint_ops.decode_gaussian)(maps)
    np.testing.assert_allclose(found, [[4, 3, 1], [0.5, 7.5, 1]], atol=1e-5)


def test_decode_stays_in_the_highest_cell(rng):
    maps = jnp.asarray(rng.normal(size=(50, 9, 9, 2)), jnp.float32)  # With values below 0.
    maps = maps.at[0].set(0).at[1].set(-3)
    found, scores = decode(maps)
    flat = np.array(maps).reshape(50, 81, 2)
    np.testing.assert_array_equal(scores, flat.max(1))
    row, column = np.divmod(flat.argmax(1), 9)
    middle = np.stack([column, row], axis=-1) + 0.5
    assert np.abs(found[..., :2] - middle).max() <= 0.5
    np.testing.assert_array_equal(found[:2, :, :2], np.full((2, 2, 2), 0.5))


def test_gaussian_gradients(rng):
    keypoints = random_keypoints(rng, (3,), (6, 8))
    total = functools.partial(draw, size=(6, 8), sigma=1.5)
    check_grads(total, (keypoints,), 1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_flip_by_hand(compiled):
    keypoints = jnp.array([[[1.0, 5, 2], [3, 6, 1], [9, 7, 2], [4, 4, 0]]])
    got = compiled(lambda k, width: keypoint_ops.flip_keypoints(k, width, [(1, 2)]))(
        keypoints, 10.0
    )
    np.testing.assert_array_equal(got, [[[9, 5, 2], [1, 7, 2], [7, 6, 1], [0, 0, 0]]])


def test_flip_undoes_itself_and_flips_heatmaps(rng):
    keypoints, pairs = random_keypoints(rng, (2, 7), (9, 12)), [(0, 3), (6, 1)]
    flipped = keypoint_ops.flip_keypoints(keypoints, 12, pairs)
    np.testing.assert_allclose(
        keypoint_ops.flip_keypoints(flipped, 12, pairs), keypoints, atol=1e-5
    )
    mirrored = draw(keypoints, (9, 12), 1)[:, :, ::-1][..., jnp.array([3, 6, 2, 0, 4, 5, 1])]
    np.testing.assert_allclose(draw(flipped, (9, 12), 1), mirrored, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: keypoint_ops.keypoints_to_heatmaps(
                jnp.zeros((1, 2, 3)), jnp.zeros((1, 4)), size=0
            ),
            r"size must be positive\. Got 0",
        ),
        (
            lambda: keypoint_ops.gaussian_heatmaps(jnp.zeros((2, 3)), size=(3, 0), sigma=1),
            r"size must be positive\. Got \(3, 0\)",
        ),
        (
            lambda: keypoint_ops.gaussian_heatmaps(jnp.zeros((2, 3)), size=(3, 3), sigma=0),
            r"sigma must be positive\. Got 0",
        ),
        *(
            (
                lambda pairs=pairs: keypoint_ops.flip_keypoints(jnp.zeros((3, 3)), 9, pairs),
                r"pairs must be different indices below 3\. Got",
            )
            for pairs in ([(0, 3)], [(-1, 0)], [(0, 1), (1, 2)], [(0, 1), (0, 1)], [(1, 1), (1, 2)])
        ),
    ],
)
def test_rejects(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rejects_other_shapes():
    with pytest.raises(jaxtyping.TypeCheckError):
        keypoint_ops.heatmaps_to_keypoints(jnp.zeros((2, 7, 7, 17)), jnp.zeros((3, 4)))


def test_distances_by_hand(compiled):
    points = jnp.array([[[0.0, 0, 2], [3, 4, 1], [9, 9, 0]], [[1, 1, 2], [1, 1, 2], [1, 5, 2]]])
    pairs = ((0, 1), (1, 2))
    lengths, known = compiled(lambda x: keypoint_ops.distances(x, pairs))(points)
    np.testing.assert_allclose(lengths, [[5, 0], [0, 4]])
    np.testing.assert_array_equal(known, [[True, False], [True, True]])


def test_distances_have_gradients_where_keypoints_meet():
    points = jnp.ones((2, 3)) * 2
    slope = jax.grad(lambda x: keypoint_ops.distances(x, [(0, 1)])[0].sum())(points)
    np.testing.assert_array_equal(slope, np.zeros((2, 3)))


def test_distances_want_keypoints_that_there_are():
    with pytest.raises(ValueError, match=r"below 2.*\(0, 2\)"):
        keypoint_ops.distances(jnp.ones((2, 3)), [(0, 2)])
