import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms

N, K = 60, 40
# Made by tests/golden/make_boxes.py: 54 sets, nine thresholds.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/boxes.npz")


def clustered(rng, n=N):
    """Boxes of a detector: many around few objects; scores with ties."""
    center, side = rng.uniform(0, 100, (6, 2)), rng.uniform(20, 60, (6, 2))
    which = rng.integers(0, 6, n)
    low = center[which] + rng.normal(0, 6, (n, 2))
    boxes = np.hstack([low, low + side[which] * rng.uniform(0.7, 1.4, (n, 2))])
    scores = rng.integers(0, 30, n) / 30
    return jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)


def greedy(boxes, scores, groups, valid, threshold, k):
    """Oracle: the published loop over one box at a time."""
    iou = np.array(iou_ops.pairwise_iou(boxes, boxes))
    kept = []
    scores, groups = np.array(scores), np.array(groups)
    for i in sorted(np.flatnonzero(valid), key=lambda i: -scores[i]):
        if all(groups[i] != groups[j] or float(iou[j, i]) <= threshold for j in kept):
            kept.append(int(i))
    return kept[:k]


def rows(kept):
    """The kept rows; checks what padding looks like."""
    valid, indices = np.array(kept.valid), np.array(kept.indices)
    assert not valid[np.cumsum(~valid) > 0].any()
    np.testing.assert_array_equal(indices[~valid], 0)
    return indices[valid].tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_matches_greedy_loop(rng, threshold):
    run = jax.jit(functools.partial(nms.nms, iou_threshold=threshold, max_outputs=K))
    lengths = []
    for _ in range(10):
        boxes, scores = clustered(rng)
        valid = jnp.asarray(rng.uniform(size=N) < 0.9)
        want = greedy(boxes, scores, np.zeros(N), valid, threshold, K)
        assert rows(run(boxes, scores, valid)) == want
        lengths.append(len(want))
    assert min(lengths) >= 3


def test_groups_match_greedy_loop(compiled, rng):
    run = functools.partial(nms.batched_nms, iou_threshold=0.3, max_outputs=K)
    boxes, scores = clustered(rng)
    groups = jnp.asarray(rng.choice([-7, 0, 90], N))
    valid = jnp.asarray(rng.uniform(size=N) < 0.9)
    want = greedy(boxes, scores, groups, valid, 0.3, K)
    assert rows(compiled(run)(boxes, scores, groups, valid)) == want


def test_groups_are_exact_far_from_the_origin():
    # IoU 9 / 11 and 4 / 6 at 16 million px, where float32 counts whole pixels.
    far = 2.0**24 - 64
    boxes = far + jnp.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 5, 5], [0, 1, 5, 6]])
    got = nms.batched_nms(
        boxes,
        jnp.array([0.9, 0.8, 0.7, 0.6]),
        jnp.array([0, 0, 1000, 1000]),
        jnp.ones(4, bool),
        iou_threshold=0.7,
        max_outputs=4,
    )
    assert rows(got) == [0, 2, 3]


@pytest.mark.parametrize("column", range(9), ids=lambda i: f"0.{i + 1}")
def test_matches_torchvision(column):
    """Ties of scores, and overlaps on and beside the threshold, included."""
    boxes, scores, groups, count = (GOLDEN[k] for k in ("boxes", "scores", "groups", "count"))
    n = boxes.shape[1]
    valid = jnp.arange(n)[None] < jnp.asarray(count)[:, None]
    run = functools.partial(
        nms.batched_nms, iou_threshold=GOLDEN["thresholds"][column].item(), max_outputs=n
    )
    run = jax.jit(jax.vmap(run))
    for name, kinds in (("nms", np.zeros_like(groups)), ("batched", groups)):
        got = run(jnp.asarray(boxes), jnp.asarray(scores), jnp.int32(kinds), valid)
        lengths = GOLDEN[f"kept_{name}_count"].astype(int)
        want = np.split(GOLDEN[f"kept_{name}"], np.cumsum(lengths)[:-1])[column::9]
        assert len(want) == 54
        for case, kept in enumerate(want):
            there = got.valid[case]
            np.testing.assert_array_equal(got.indices[case][there], kept, err_msg=f"{case}")


def test_many_tiles_and_blocks(rng):
    # More rows than three tiles, more kept than one block.
    n = nms.BLOCK + 3 * nms.TILE + 5
    low = rng.uniform(0, 700, (n, 2))
    boxes = np.hstack([low, low + rng.uniform(10, 30, (n, 2))]).astype(np.float32)
    scores, groups = np.float32(rng.integers(0, 50, n)), rng.integers(0, 2, n)
    run = functools.partial(nms.batched_nms, iou_threshold=0.2, max_outputs=n)
    valid = rng.uniform(size=n) < 0.95
    arrays = tuple(map(jnp.asarray, (boxes, scores, groups, valid)))
    want = greedy(*arrays, 0.2, n)
    assert rows(jax.jit(run)(*arrays)) == want
    assert nms.BLOCK < len(want) < 0.95 * valid.sum()
    few = jax.jit(functools.partial(run, max_outputs=nms.TILE + 1))
    assert rows(few(*arrays)) == want[: nms.TILE + 1]


def test_separated_groups_suppress_as_groups_do(rng):
    boxes, scores = clustered(rng)
    boxes = jnp.maximum(boxes, 0)
    groups, valid = jnp.asarray(rng.integers(0, 4, N)), jnp.asarray(rng.uniform(size=N) < 0.9)
    boxes = jnp.where(valid[:, None], boxes, 1e6)  # Would push the groups apart too far.
    options = {"iou_threshold": 0.4, "max_outputs": N}
    want = rows(nms.batched_nms(boxes, scores, groups, valid, **options))
    moved = nms.separate_groups(boxes, groups, valid)
    assert rows(nms.nms(moved, scores, valid, **options)) == want
    assert rows(nms.nms(boxes, scores, valid, **options)) != want
    assert moved[valid].max() < 4 * (boxes[valid].max() + 1)


def test_suppress_by_any_relation():
    # A number removes its multiples; 6 is removed by 2, 9 by 3, so 18 by neither 6 nor 9 alone.
    numbers = jnp.array([18, 6, 2, 3, 9, 5])

    def divides(rows, others):
        return numbers[others][None] % numbers[rows][:, None] == 0

    got = nms.suppress(divides, -numbers.astype(jnp.float32), jnp.ones(6, bool), max_outputs=6)
    assert numbers[jnp.array(rows(got))].tolist() == [2, 3, 5]
    only = jnp.array([True, True, False, False, True, True])
    got = nms.suppress(divides, -numbers.astype(jnp.float32), only, max_outputs=6)
    assert numbers[jnp.array(rows(got))].tolist() == [5, 6, 9]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.25, 0.3, 0.7, 0.9, 1.0])
def test_float32_at_most(threshold):
    got = nms.float32_at_most(threshold)
    assert float(got) <= threshold < float(np.nextafter(got, np.float32(2)))


def test_iou_at_the_threshold_stays():
    # IoU with the first: 5 / 10, then a little more.
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.001]])
    scores = jnp.array([0.9, 0.8, 0.95])
    run = jax.jit(functools.partial(nms.nms, iou_threshold=0.5, max_outputs=3))
    assert rows(run(boxes[:2], scores[:2], jnp.ones(2, bool))) == [0, 1]
    assert rows(run(boxes[::2], scores[::2], jnp.ones(2, bool))) == [1]


def test_suppressed_boxes_do_not_suppress():
    # 0 removes 1; 2 overlaps 1 alone, and stays.
    boxes = jnp.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    got = nms.nms(
        boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), iou_threshold=0.3, max_outputs=3
    )
    assert rows(got) == [0, 2]


def test_equal_scores_rank_by_index():
    boxes = jnp.array([[0.0, 0, 1, 1], [5, 5, 6, 6], [0, 0, 1, 1], [7, 7, 8, 8]])
    got = nms.nms(boxes, jnp.zeros(4), jnp.ones(4, bool), iou_threshold=0.5, max_outputs=3)
    assert rows(got) == [0, 1, 3]


def test_rows_that_are_not_valid_do_nothing(rng):
    boxes, scores = clustered(rng, 20)
    run = jax.jit(functools.partial(nms.nms, iou_threshold=0.5, max_outputs=K))
    want = rows(run(boxes, scores, jnp.ones(20, bool)))
    junk = jnp.asarray(np.full((5, 4), np.nan), jnp.float32).at[0].set(boxes[want[0]])
    padded = run(
        jnp.concatenate([boxes, junk]),
        jnp.concatenate([scores, jnp.array([9.0, np.inf, np.nan, 9, 9])]),
        jnp.arange(25) < 20,
    )
    assert rows(padded) == want


def test_degenerate_boxes_stay():
    boxes = jnp.array([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 9, 9], [9, 9, 0, 0]])
    got = nms.nms(boxes, jnp.arange(4.0), jnp.ones(4, bool), iou_threshold=0.5, max_outputs=5)
    assert rows(got) == [3, 2, 1, 0]


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_valid(n):
    run = jax.jit(functools.partial(nms.nms, iou_threshold=0.5, max_outputs=2))
    assert rows(run(jnp.ones((n, 4)), jnp.ones(n), jnp.zeros(n, bool))) == []


def test_vmap_is_one_image_at_a_time(rng):
    boxes, scores = map(jnp.stack, zip(*[clustered(rng) for _ in range(4)], strict=True))
    valid = jnp.asarray(rng.uniform(size=(4, N)) < [[1.0], [0.5], [0.05], [0.0]])
    run = functools.partial(nms.nms, iou_threshold=0.5, max_outputs=K)
    batch = jax.jit(jax.vmap(run))(boxes, scores, valid)
    single = jax.jit(run)
    for i in range(4):
        assert rows(jax.tree.map(lambda x, i=i: x[i], batch)) == rows(
            single(boxes[i], scores[i], valid[i])
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": 1.5, "max_outputs": 1}, "iou_threshold must be .* Got 1.5"),
        ({"iou_threshold": 0.5, "max_outputs": 0}, "max_outputs must be positive. Got 0"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        nms.nms(jnp.zeros((2, 4)), jnp.zeros(2), jnp.ones(2, bool), **options)


OF_NUMPY = """
import jax, numpy as np
from jaxdet.geometry import box_fusion, box_merging, nms, rotated, soft_nms

rng = np.random.default_rng(0)
low = rng.uniform(0, 50, (12, 2))
boxes = np.concatenate([low, low + rng.uniform(10, 40, (12, 2))], axis=1).astype(np.float32)
tilted = np.concatenate([boxes, np.full((12, 1), 20.0, np.float32)], axis=1)
scores = rng.uniform(size=12).astype(np.float32)
groups, valid = np.arange(12, dtype=np.int32) % 2, np.arange(12) < 9
iou, decay = {"iou_threshold": 0.5}, {"sigma": 0.5, "score_threshold": 0.0}
for run, shapes, options in (
    (nms.batched_nms, boxes, iou),
    (rotated.batched_nms, tilted, iou),
    (soft_nms.soft_nms_gaussian, boxes, decay),
    (soft_nms.soft_nms_linear, boxes, iou | {"score_threshold": 0.0}),
    (box_fusion.weighted_box_fusion, boxes, iou | {"n_models": 2}),
    (box_merging.merge_boxes, boxes, {"threshold": 0.8}),
):
    arrays = (shapes, scores, groups, valid)
    got = run(*arrays, **options, max_outputs=5)
    want = run(*jax.device_put(arrays), **options, max_outputs=5)
    jax.tree.map(np.testing.assert_array_equal, got, want)
"""


def test_arrays_of_numpy_are_taken():
    """Scores that were read from a file; here, types of arguments would be looked at first."""
    subprocess.run([sys.executable, "-c", OF_NUMPY], check=True)
