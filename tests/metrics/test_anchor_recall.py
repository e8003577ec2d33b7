import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.metrics import anchor_recall


def test_best_overlaps_by_hand():
    anchors = jnp.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    boxes = jnp.array([[0.0, 0, 10, 5], [20, 0, 30, 10], [50, 50, 60, 60], [5, 5, 5, 5]])
    got = anchor_recall.best_overlaps(boxes, anchors)
    np.testing.assert_allclose(got, [0.5, 1, 0, 0], atol=1e-6)


def test_recall_by_size_by_hand():
    overlaps = np.array([0.4, 0.5, 0.6, 0.9])
    sides = np.array([10.0, 20.0, 32.0, 32.0])
    sizes = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, np.inf)}
    table = anchor_recall.recall_by_size(overlaps, sides, sizes)
    assert table["small"] == {"boxes": 2, "mean": pytest.approx(0.45), "0.5": 0.5, "0.7": 0}
    assert table["medium"] == {"boxes": 2, "mean": pytest.approx(0.75), "0.5": 1, "0.7": 0.5}
    assert table["all"] == {"boxes": 4, "mean": pytest.approx(0.6), "0.5": 0.75, "0.7": 0.25}
    assert table["large"]["boxes"] == 0 and np.isnan(table["large"]["0.5"])
