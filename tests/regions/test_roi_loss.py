import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import coders
from jaxdet.regions import roi_loss
from jaxdet.regions.heads import BoxOutputs
from jaxdet.structures import Instances


def softmax_loss(logits, label):
    return np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[label]


@pytest.mark.parametrize("n_boxes", [4, 1], ids=["of each class", "class-agnostic"])
def test_box_head_loss_matches_oracle(compiled, rng, n_boxes):
    n, k, beta = 7, 4, 0.5
    logits, deltas = rng.normal(size=(n, k)), rng.normal(size=(n, n_boxes, 4))
    target, labels = rng.normal(size=(n, 4)), np.array([2, 1, 3, 0, 0, 0, 0])
    positive, valid = np.arange(n) < 3, np.arange(n) < 5

    entropy = sum(softmax_loss(logits[i], labels[i]) for i in range(5))
    distance = 0.0
    for i in range(3):
        for e in np.abs(deltas[i, labels[i] if n_boxes > 1 else 0] - target[i]):
            distance += e**2 / (2 * beta) if e < beta else e - beta / 2

    # Rows that are not valid must not matter, whatever they hold.
    logits[5:], target[6] = 1e30, np.inf
    head = BoxOutputs(*(jnp.asarray(x, jnp.float32) for x in (logits, deltas)))
    sample = roi_loss.RoISample(
        jnp.zeros((n, 4)),
        jnp.asarray(labels),
        jnp.asarray(target, jnp.float32),
        jnp.asarray(positive),
        jnp.asarray(valid),
    )
    got = compiled(functools.partial(roi_loss.box_head_loss, beta=beta))(head, sample)
    np.testing.assert_allclose(got["roi_class"], (entropy, 5), rtol=1e-5)
    np.testing.assert_allclose(got["roi_box"], (distance, 5), rtol=1e-5)


def sampled(*, objects, regions=(0, 0, 0), size=16, valid=(1, 1, 1, 1, 1, 0)):
    proposals = [
        [0, 0, 20, 20],  # The first object, exactly.
        [0, 0, 20, 11],  # IoU 0.55 with it.
        [0, 0, 20, 9],  # IoU 0.45: background.
        [60, 60, 80, 80],  # Background.
        [42, 42, 54, 54],  # Inside the third row.
        [40, 40, 60, 60],  # As good as the third row, but not valid.
    ]
    truth = Instances(
        jnp.array([[0.0, 0, 20, 20], [100, 100, 120, 120], [40, 40, 60, 60]]),
        jnp.array([2, 1, 3]),
        jnp.ones(3, bool),
        jnp.array(regions, bool),
        jnp.zeros(3, bool),
    )
    sample = jax.jit(
        roi_loss.sample_rois, static_argnames=("positive_iou", "sample_size", "positive_fraction")
    )(
        jax.random.key(0),
        jnp.array(proposals, jnp.float32),
        jnp.array(valid, bool),
        truth,
        jnp.array(objects, bool),
        jnp.array(regions, bool),
        positive_iou=0.5,
        sample_size=size,
        positive_fraction=0.5,
    )
    rows = [
        (tuple(box), int(label), bool(positive))
        for box, label, positive, used in zip(
            np.array(sample.boxes).tolist(),
            sample.labels,
            sample.positive,
            sample.valid,
            strict=True,
        )
        if used
    ]
    return sample, sorted(rows)


def test_sample_rois_by_hand():
    sample, rows = sampled(objects=[1, 1, 0], regions=[0, 0, 1])
    assert rows == [
        ((0, 0, 20, 9), 0, False),
        ((0, 0, 20, 11), 2, True),
        ((0, 0, 20, 20), 2, True),
        ((0, 0, 20, 20), 2, True),  # The object itself.
        ((60, 60, 80, 80), 0, False),
        ((100, 100, 120, 120), 1, True),  # No proposal is near, but the object joins.
    ]
    exact = np.array(sample.positive & (sample.boxes[:, 3] != 11))
    np.testing.assert_allclose(sample.target_deltas[exact], 0, atol=1e-6)
    moved = np.array(sample.boxes[:, 3] == 11)
    want = coders.encode_boxes(
        jnp.array([0.0, 0, 20, 20]), jnp.array([0.0, 0, 20, 11]), weights=(10.0, 10.0, 5.0, 5.0)
    )
    np.testing.assert_allclose(sample.target_deltas[moved][0], want, rtol=1e-5)


def test_sample_rois_has_a_limited_share_of_objects():
    sample, _ = sampled(objects=[1, 1, 1], size=4)
    assert sample.positive.sum() == 2 and sample.valid.sum() == 4


def test_sample_rois_without_objects():
    sample, rows = sampled(objects=[0, 0, 0])
    assert len(rows) == 5 and not sample.positive.any() and not sample.labels.any()
    assert np.isfinite(sample.target_deltas).all()
    sample, rows = sampled(objects=[0, 0, 0], valid=[0] * 6)
    assert rows == [] and not sample.boxes.any()
