import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.metrics import pose
from jaxdet.structures import Instances

# Two objects of four joints: the box of the first is 30 x 40, so its diagonal is 50; the second's
# 6 x 8, 10. A joint of the second is not labelled.
BOXES = jnp.array([[0.0, 0, 30, 40], [100, 100, 106, 108]])
TRUTH = jnp.array(
    [
        [[0.0, 0, 2], [30, 0, 1], [30, 40, 2], [0, 40, 2]],
        [[100, 100, 2], [106, 100, 2], [106, 108, 2], [0, 0, 0]],
    ]
)
# Off by 5, 5.1, 0 and 30 px, and by 1, 1.1, 0 and far.
JOINTS = jnp.array(
    [
        [[3.0, 4], [30, 5.1], [30, 40], [0, 10]],
        [[101, 100], [106, 101.1], [106, 108], [900, 900]],
    ]
)


def test_pck_by_hand(compiled):
    found, counted = compiled(lambda *x: pose.pck(*x, threshold=0.1))(JOINTS, TRUTH, BOXES)
    np.testing.assert_array_equal(found, [2, 0, 2, 0])
    np.testing.assert_array_equal(counted, [2, 2, 2, 1])
    assert pose.mean((found, counted)) == pytest.approx(0.5)
    looser, _ = pose.pck(JOINTS, TRUTH, BOXES, threshold=0.6)
    np.testing.assert_array_equal(looser, counted)


def test_pck_leaves_out_objects_without_area():
    boxes = BOXES.at[1].set(jnp.array([100.0, 100, 100, 108]))
    found, counted = pose.pck(JOINTS, TRUTH, boxes, threshold=0.1)
    np.testing.assert_array_equal(counted, [1, 1, 1, 1])
    np.testing.assert_array_equal(found, [1, 0, 1, 0])


def test_pdj_by_hand(compiled):
    # From joint 0 to 1: 30 and 6 px.
    found, counted = compiled(lambda *x: pose.pdj(*x, torso=(0, 1), threshold=0.17))(JOINTS, TRUTH)
    np.testing.assert_array_equal(found, [2, 1, 2, 0])
    np.testing.assert_array_equal(counted, [2, 2, 2, 1])
    # Joint 3 of the second object is not labelled.
    _, counted = pose.pdj(JOINTS, TRUTH, torso=(0, 3), threshold=0.17)
    np.testing.assert_array_equal(counted, [1, 1, 1, 1])


def test_pcp_by_hand(compiled):
    # Limbs of 30, 40 and 40 px, of 6 and 8 px, one of whose ends is not labelled. One end of the
    # last limb is off by 30 > 20.
    limbs = ((0, 1), (1, 2), (2, 3))
    found, counted = compiled(lambda *x: pose.pcp(*x, limbs=limbs))(JOINTS, TRUTH)
    np.testing.assert_array_equal(found, [2, 2, 0])
    np.testing.assert_array_equal(counted, [2, 2, 1])
    assert pose.mean((found, counted)) == pytest.approx(2 / 3)
    strict, _ = pose.pcp(JOINTS, TRUTH, limbs=limbs, threshold=5.2 / 30)
    np.testing.assert_array_equal(strict, [1, 2, 0])


def test_sums_of_a_cascade_by_hand(compiled):
    """Stage 1 knows nothing, stage 2 is `JOINTS`; a crowd and a difficult object do not count."""
    truth = Instances(
        boxes=jnp.concatenate([BOXES, BOXES])[None],
        labels=jnp.ones((1, 4), jnp.int32),
        valid=jnp.ones((1, 4), bool),
        crowd=jnp.array([[False, False, True, False]]),
        difficult=jnp.array([[False, False, False, True]]),
        keypoints=jnp.concatenate([TRUTH, TRUTH])[None],
    )
    last = jnp.concatenate([JOINTS, 0 * JOINTS])
    joints = jnp.stack([0 * last - 900, last], axis=1)[None]
    limbs = ((0, 1), (1, 2), (2, 3))
    run = functools.partial(pose.sums, torso=(0, 1), limbs=limbs)
    got = compiled(run)(joints, truth)
    want = {
        "PCK": pose.pck(JOINTS, TRUTH, BOXES, threshold=0.1),
        "PDJ": pose.pdj(JOINTS, TRUTH, torso=(0, 1), threshold=0.2),
        "PCP": pose.pcp(JOINTS, TRUTH, limbs=limbs),
        "PCK1": ([0, 0, 0, 0], [2, 2, 2, 1]),
        "PCK2": ([2, 0, 2, 0], [2, 2, 2, 1]),
    }
    assert got.keys() == want.keys()
    for name, counts in want.items():
        for a, b in zip(got[name], counts, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(pose.labelled(truth)[0, :2], TRUTH)
    assert not pose.labelled(truth)[0, 2:, :, 2].any()


def test_mean_is_over_joints_that_were_counted():
    assert pose.mean((jnp.array([1.0, 0, 3]), jnp.array([2.0, 0, 3]))) == pytest.approx(0.75)
    assert pose.mean((jnp.zeros(2), jnp.zeros(2))) == 0


def test_counts_add_up_over_pictures():
    whole = pose.pcp(JOINTS, TRUTH, limbs=((0, 1), (2, 3)))
    parts = [pose.pcp(JOINTS[i], TRUTH[i], limbs=((0, 1), (2, 3))) for i in range(2)]
    for number in (0, 1):
        np.testing.assert_array_equal(whole[number], parts[0][number] + parts[1][number])


def test_errors_by_hand():
    truth = np.array([[[0.0, 0, 2], [10, 0, 2]], [[0, 0, 1], [0, 0, 0]]])
    joints = np.array([[[2.0, 0], [10, 5]], [[4, 8], [99, 99]]])
    found = pose.measure_errors(joints, truth, np.array([10.0, 20.0]))
    np.testing.assert_allclose(found.mean, [[0.2, 0.2], [0, 0.5]])
    np.testing.assert_allclose(found.std, [[0, 0.2], [0, 0]])
