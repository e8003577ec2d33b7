import functools
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.geometry import masks as mask_ops
from jaxdet.regions.roi_align import roi_align

# Made by tests/golden/make_masks.py: 96 boxes of every kind, on pictures of 20 x 26.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/masks.npz")
BITMAPS = jnp.asarray(GOLDEN["bitmaps"])
SIZE = (20, 26)


def frames(n_cells):
    return jnp.asarray(GOLDEN[f"paste_{n_cells}_frames"] / np.float32(255))


def boxes(n_cells):
    return jnp.asarray(GOLDEN[f"boxes_{n_cells}"])


def hat(place, center):
    return max(0.0, 1 - abs(place - center))


def crop_one(mask, box, p, q):
    """Oracle: RoIAlign of one feature, float64, sample by sample."""
    h, w = mask.shape
    axes = []
    for low, high, n, limit in ((box[1], box[3], p, h), (box[0], box[2], q, w)):
        side = max(high - low, 1)
        n_samples = int(np.ceil(side / n))
        weights = np.zeros((n, limit))
        for cell, sample in np.ndindex(n, n_samples):
            place = low + side / n * (cell + (sample + 0.5) / n_samples)
            if -1 <= place <= limit:
                place = min(max(place, 0), limit - 1)
                weights[cell] += [hat(place, i) / n_samples for i in range(limit)]
        axes.append(weights)
    return axes[0] @ mask @ axes[1].T


def paste_one(frame, box, h, w):
    """Oracle: grow, cut to whole pixels, stretch; pixel by pixel."""
    p, q = frame.shape
    bordered, out = np.pad(frame, 1), np.zeros((h, w))
    ends = []
    for low, high, n in ((box[1], box[3], p), (box[0], box[2], q)):
        center, half = (low + high) / 2, (high - low) / 2 * (n + 2) / n
        ends.append((int(center - half), int(center + half)))
    (y1, y2), (x1, x2) = ends
    for y, x in np.ndindex(h, w):
        if y1 <= y <= y2 and x1 <= x <= x2:
            row = max((y - y1 + 0.5) * (p + 2) / (y2 - y1 + 1) - 0.5, 0)
            column = max((x - x1 + 0.5) * (q + 2) / (x2 - x1 + 1) - 0.5, 0)
            by_y = np.array([hat(row, i) for i in range(p + 2)])
            out[y, x] = by_y @ bordered @ np.array([hat(column, i) for i in range(q + 2)])
    return out


def disc(size, center, radius):
    """A smooth disc, 0 to 1."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    distance = np.hypot(y - center[0], x - center[1])
    return jnp.asarray(1 / (1 + np.exp((distance - radius) / 3)), jnp.float32)


def test_boxes_by_hand(compiled):
    masks = np.zeros((4, 5, 7), bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    masks[2] = True
    want = [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 7, 5], [0, 0, 0, 0]]
    np.testing.assert_array_equal(compiled(mask_ops.masks_to_boxes)(jnp.asarray(masks)), want)


def test_boxes_match_torchvision():
    got = jax.jit(mask_ops.masks_to_boxes)(BITMAPS)
    want, empty = GOLDEN["boxes_around"].copy(), ~GOLDEN["bitmaps"].any((1, 2))
    want[~empty, 2:] += 1  # Torchvision's end in the last pixel.
    np.testing.assert_array_equal(got, want)
    assert 0 < empty.sum() < 4


def test_iou_by_hand(compiled):
    a = jnp.array([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], bool)
    b = jnp.array([[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]], bool)
    got = compiled(mask_ops.mask_iou)(a, b)
    np.testing.assert_allclose(got, [[1 / 4, 2 / 6, 0], [0, 0, 0]], rtol=1e-6)
    got = compiled(mask_ops.mask_intersection_over_first)(a, b)
    np.testing.assert_allclose(got, [[1 / 2, 1, 0], [0, 0, 0]], rtol=1e-6)


def test_iou_matches_pycocotools():
    a, b = BITMAPS[:8], BITMAPS[-9:]
    got = jax.jit(mask_ops.mask_iou)(a, b)
    np.testing.assert_allclose(got, GOLDEN["iou"], rtol=1e-6)
    got = jax.jit(mask_ops.mask_intersection_over_first)(a, b)
    np.testing.assert_allclose(got, GOLDEN["iou_crowd"], rtol=1e-6)
    assert (GOLDEN["iou"] > 0.1).mean() > 0.3


def test_iou_counts_every_pixel_of_large_masks():
    full = jnp.ones((1, 2000, 2000), bool)
    short = full.at[0, 0, 0].set(False)
    assert mask_ops.mask_intersection_over_first(full, short)[0, 0] == np.float32(1 - 1 / 4e6)


@pytest.mark.parametrize("n_cells", [7, 28])
def test_paste_matches_torchvision(compiled, n_cells):
    paste = compiled(functools.partial(mask_ops.paste_masks, size=SIZE))
    want = GOLDEN[f"paste_{n_cells}"]
    np.testing.assert_allclose(paste(frames(n_cells), boxes(n_cells)), want, atol=2e-6)
    assert (want > 0).any((1, 2)).mean() > 0.9


@pytest.mark.parametrize("n_cells", [7, 28])
def test_crop_matches_torchvision(compiled, n_cells):
    crop = compiled(functools.partial(mask_ops.crop_masks, size=n_cells))
    got = crop(BITMAPS[GOLDEN[f"crop_{n_cells}_rows"]], boxes(n_cells))
    np.testing.assert_allclose(got, GOLDEN[f"crop_{n_cells}"], atol=5e-6)


def test_paste_by_hand():
    # 2 x 2 cells and their border are 4 x 4; so are the pixels 0 to 3 of a box that grows to them.
    frame = jnp.array([[[0.1, 0.2], [0.3, 0.4]]])
    got = mask_ops.paste_masks(frame, jnp.array([[0.75, 0.75, 2.25, 2.25]]), (5, 6))
    want = np.zeros((5, 6))
    want[1:3, 1:3] = frame[0]
    np.testing.assert_allclose(got[0], want, atol=1e-6)


def test_crop_by_hand(compiled):
    # Seven cells of a pixel, whose only samples are in their middles.
    box = jnp.array([[-1.5, 14.5, 5.5, 21.5], [2, 3, 9, 10]])
    columns = jnp.broadcast_to(1 - jnp.arange(26) / 25, (2, 20, 26))
    got = compiled(functools.partial(mask_ops.crop_masks, size=7))(columns, box)
    places = np.array([0, 0, 1, 2, 3, 4, 5])  # The first is at -1, which counts as 0.
    np.testing.assert_allclose(got[0, :6], np.tile(1 - places / 25, (6, 1)), atol=1e-6)
    assert not got[0, 6].any()  # Row 20 counts as 19, but row 21 is too far out.
    np.testing.assert_allclose(got[1], np.tile(1 - (2.5 + np.arange(7)) / 25, (7, 1)), atol=1e-6)


def test_paste_matches_oracle_on_frames_that_are_not_square(rng):
    frame = rng.random((6, 5, 9)).astype(np.float32)
    low = rng.uniform(-8, 25, (6, 2))
    box = np.hstack([low, low + rng.uniform(1, 30, (6, 2))]).astype(np.float32)
    got = mask_ops.paste_masks(jnp.asarray(frame), jnp.asarray(box), (33, 41))
    want = [paste_one(f, b, 33, 41) for f, b in zip(frame, box.astype(float), strict=True)]
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_crop_matches_oracle_on_large_pictures(rng):
    # Up to 36 samples of a cell; the last box has three, hardly more than 2/3 px apart.
    mask = rng.random((6, 300, 400)).astype(np.float32)
    box = np.array(
        [
            [0, 0, 400, 300],
            [3, 5, 391, 14.2],
            [99.5, 0, 107, 300],
            [-40, -30, 410, 330],
            [9, 9, 9, 9],
            [20.3, 30.6, 48.301, 50.601],
        ]
    ).astype(np.float32)
    got = mask_ops.crop_masks(jnp.asarray(mask), jnp.asarray(box), size=(10, 14))
    want = [crop_one(m, b, 10, 14) for m, b in zip(mask, box.astype(float), strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_crop_is_roi_align_of_one_feature(rng):
    # Sides of 1 to 2 cells' worth of pixels: both take two samples of a cell along each axis.
    low = rng.uniform(-3, 12, (9, 2))
    box = jnp.asarray(np.hstack([low, low + rng.uniform(5.1, 9.9, (9, 2))]), jnp.float32)
    want = roi_align(BITMAPS[0, :, :, None].astype(jnp.float32), box, output_size=5)
    got = mask_ops.crop_masks(jnp.broadcast_to(BITMAPS[0], (9, *SIZE)), box, size=5)
    np.testing.assert_allclose(got, want[..., 0], atol=2e-6)


def test_paste_inverts_crop_of_smooth_masks():
    mask = disc((80, 96), center=(38, 47), radius=20)[None]
    box = jnp.array([[14.0, 8.0, 80.0, 68.0]])
    crop = mask_ops.crop_masks(mask, box, size=28)
    got = mask_ops.paste_masks(crop, box, (80, 96))[0]
    inside = np.s_[9:67, 15:79]
    assert np.abs(got - mask[0])[inside].max() < 0.12
    # What is left is the half pixel by which values stand at their corners.
    moved = disc((80, 96), center=(37.5, 46.5), radius=20)
    assert np.abs(got - moved)[inside].max() < 0.05
    assert (np.array(got > 0.5) & np.array(mask[0] > 0.5)).sum() > 0.96 * (mask[0] > 0.5).sum()


@pytest.mark.parametrize(
    "way",
    [
        functools.partial(mask_ops.paste_masks, size=(9, 12)),
        functools.partial(mask_ops.crop_masks, size=4),
    ],
    ids=["paste", "crop"],
)
def test_gradients(way, rng):
    masks = jnp.asarray(rng.random((3, 7, 8)), jnp.float32)
    box = jnp.array([[1.2, 0.4, 7.7, 6.1], [-2, 3, 5, 11], [0, 0, 0, 0]])
    check_grads(
        jax.jit(lambda masks: way(masks, box)), (masks,), 1, modes=["rev", "fwd"], atol=1e-2
    )
    grad = jax.jit(jax.grad(lambda masks, box: (way(masks, box) ** 2).sum(), (0, 1)))
    by_masks, by_box = grad(masks, box)
    assert by_masks.any() and not by_box.any()


def test_bad_boxes_are_drawn_nowhere_and_harm_no_others(rng):
    inf, nan = np.inf, np.nan
    bad = [[nan, 0, 5, 5], [-inf, 0, inf, 5], [3, nan, 5, nan], [1e30, 0, 2e30, 5], [5, 5, -9, -9]]
    good = [2.0, 3.0, 11.0, 9.0]
    box = jnp.array([*bad, [-60.0, -60, -40, -40], good])
    masks = jnp.asarray(rng.random((len(box), 5, 5)), jnp.float32)
    all_good = jnp.broadcast_to(box[-1], box.shape)

    def check(way, masks):
        def total(masks, box):
            out = way(masks, box)
            return (out**2).sum(), out

        run = jax.jit(jax.value_and_grad(total, has_aux=True))
        (value, got), grad = run(masks, box)
        assert np.isfinite(value) and np.isfinite(grad).all()
        np.testing.assert_array_equal(got[-1], run(masks, all_good)[0][1][-1])
        return got

    drawn = check(functools.partial(mask_ops.paste_masks, size=(12, 14)), masks)
    assert not drawn[:-1].any() and drawn[-1].any()
    pictures = jnp.asarray(rng.random((len(box), 12, 14)), jnp.float32)
    check(functools.partial(mask_ops.crop_masks, size=5), pictures)


def test_vmap_is_image_by_image():
    paste = functools.partial(mask_ops.paste_masks, size=SIZE)
    got = jax.jit(jax.vmap(paste))(frames(7).reshape(4, 16, 7, 7), boxes(7).reshape(4, 16, 4))
    np.testing.assert_allclose(got.reshape(64, *SIZE), GOLDEN["paste_7"], atol=2e-6)
    crop = functools.partial(mask_ops.crop_masks, size=7)
    masks = BITMAPS[GOLDEN["crop_7_rows"]].reshape(4, 16, *SIZE)
    got = jax.jit(jax.vmap(crop))(masks, boxes(7).reshape(4, 16, 4))
    np.testing.assert_allclose(got.reshape(64, 7, 7), GOLDEN["crop_7"], atol=5e-6)


def test_crop_makes_no_float_copy_of_all_masks():
    masks, box = jnp.zeros((64, 200, 300), bool), jnp.zeros((64, 4))
    crop = functools.partial(mask_ops.crop_masks, size=14)
    program = jax.jit(crop).lower(masks, box).compile()
    assert program.memory_analysis().temp_size_in_bytes < 64 * 200 * 300  # Floats are 4 times that.


def test_no_masks():
    none = jnp.zeros((0, 4))
    assert mask_ops.masks_to_boxes(BITMAPS[:0]).shape == (0, 4)
    assert mask_ops.mask_iou(BITMAPS[:0], BITMAPS).shape == (0, 24)
    assert mask_ops.paste_masks(jnp.zeros((0, 7, 7)), none, SIZE).shape == (0, *SIZE)
    assert mask_ops.crop_masks(BITMAPS[:0], none, size=7).shape == (0, 7, 7)


@pytest.mark.parametrize("wrong", [0, (0, 3), (3, -1)], ids=str)
def test_refuses_sizes_that_are_not_positive(wrong):
    box = jnp.zeros((1, 4))
    with pytest.raises(ValueError, match=r"size must be positive\. Got"):
        mask_ops.crop_masks(BITMAPS[:1], box, size=wrong)
    if isinstance(wrong, tuple):
        with pytest.raises(ValueError, match=r"size must be positive\. Got"):
            mask_ops.paste_masks(jnp.zeros((1, 7, 7)), box, wrong)


def test_refuses_masks_and_boxes_of_different_numbers():
    with pytest.raises(jaxtyping.TypeCheckError):
        mask_ops.crop_masks(BITMAPS[:3], boxes(7)[:2], size=7)
    with pytest.raises(jaxtyping.TypeCheckError):
        mask_ops.mask_iou(BITMAPS, BITMAPS[:, :9])
