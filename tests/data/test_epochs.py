import collections
import pickle

import numpy as np
import pytest

from jaxdet.data import epochs
from jaxdet.data.records import Annotation, Source


class Grey:
    """Reads flat pictures; the value is the set's."""

    def __init__(self, value):
        self.value = value

    def __call__(self, index):
        return np.full((4, 5, 3), 10 * self.value + index, np.uint8)


def make_source(labels, *, name="test", classes=("a", "b", "c"), value=0, **fields):
    """A picture for each list of labels."""
    annotations = []
    for index, row in enumerate(labels):
        n = len(row)
        boxes, flags = np.tile(np.float32([[0, 0, 2, 2]]), (n, 1)), np.zeros(n, bool)
        labels = np.array(row, np.int32)
        annotations.append(Annotation(index, f"{index}", (4, 5), boxes, labels, flags, flags))
    return Source(name, classes, tuple(annotations), Grey(value), **fields)


# Of 8 pictures: class 1 in 6, class 2 in 2, class 3 in 1; the last has none.
LABELS = [[1], [1, 1], [1], [1], [1, 2], [2, 3, 3], [1], []]


def test_repeat_factors_by_hand():
    got = epochs.repeat_factors(make_source(LABELS), threshold=0.5)
    two, three = np.sqrt(0.5 / 0.25), np.sqrt(0.5 / 0.125)
    np.testing.assert_allclose(got, [1, 1, 1, 1, two, three, 1, 1])
    np.testing.assert_array_equal(epochs.repeat_factors(make_source(LABELS)), np.ones(8))


def test_class_balanced_rates_by_hand():
    got = epochs.class_balanced_rates(make_source(LABELS))
    want = np.array([1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6 + 1 / 2, 1 / 2 + 1, 1 / 6, 0]) * 8 / 3
    np.testing.assert_allclose(got, want)
    assert abs(got.mean() - 1) < 1e-12


def test_class_balanced_is_a_class_then_a_picture(rng):
    """Oracle: draws a class, then one of its pictures."""
    holders = [[i for i, row in enumerate(LABELS) if c in row] for c in (1, 2, 3)]
    n = 60_000
    drawn = [
        holders[c][int(u * len(holders[c]))]
        for c, u in zip(rng.integers(3, size=n), rng.uniform(size=n), strict=True)
    ]
    share = np.bincount(drawn, minlength=8) / n
    np.testing.assert_allclose(
        epochs.class_balanced_rates(make_source(LABELS)) / 8, share, atol=0.01
    )


def test_classes_without_pictures_do_not_count():
    got = epochs.class_balanced_rates(make_source([[1], [1], [2]], classes=("a", "b", "c", "d")))
    np.testing.assert_allclose(got, [0.75, 0.75, 1.5])
    assert np.isfinite(epochs.repeat_factors(make_source([[1], []]), threshold=0.9)).all()


@pytest.mark.parametrize(
    "rates", [np.ones(7), np.array([0.5, 0.0, 1.25, 3.0, 0.25, 2.0, 1.0])], ids=len
)
def test_rates_are_kept(rates):
    """In each epoch each picture comes floor or ceil of its rate, over 40 epochs its rate."""
    indices = [10 + i for i in range(len(rates))]
    dataset = epochs.RatedIndices(indices, rates)
    assert len(dataset) == round(rates.sum())
    total = collections.Counter()
    for epoch in range(40):
        counts = collections.Counter(dataset[epoch * len(dataset) + i] for i in range(len(dataset)))
        for index, rate in zip(indices, rates, strict=True):
            assert np.floor(rate) <= counts[index] <= np.ceil(rate)
        total += counts
    np.testing.assert_allclose([total[i] / 40 for i in indices], rates, atol=0.06)


def test_lengths_are_whole():
    assert len(epochs.RatedIndices([0, 1, 2], np.array([0.7, 0.7, 0.7]))) == 2
    assert len(epochs.RatedIndices([0, 1], np.array([0.1, 0.1]))) == 1
    short = epochs.RatedIndices([0, 1], np.array([0.1, 0.1]))
    assert {short[i] for i in range(10)} == {0, 1}


def test_mix():
    one = make_source([[1]] * 6, name="one", value=1, notes=("first",))
    two = make_source([[2]] * 2, name="two", value=5)
    source, rates = epochs.mix([one, two], [1.0, 3.0])
    assert len(source) == 8 and source.name == "one + two" and source.notes == ("first",)
    np.testing.assert_allclose(rates, [1 / 3] * 6 + [3] * 2)
    assert abs(rates.mean() - 1) < 1e-12
    again = pickle.loads(pickle.dumps(source))
    for mixed in (source, again):
        assert [int(mixed[i][0].max()) for i in range(8)] == [10, 11, 12, 13, 14, 15, 50, 51]
        assert mixed[7][1].labels.tolist() == [2]
    counts = np.bincount([epochs.RatedIndices(range(8), rates)[i] for i in range(8)])
    assert counts[6:].sum() == 6


def test_misuse():
    one, other = make_source([[1]]), make_source([[1]], classes=("a", "c", "b"))
    with pytest.raises(ValueError, match="classes"):
        epochs.mix([one, other], [1.0, 1.0])
    with pytest.raises(ValueError, match="keypoint_names"):
        epochs.mix([one, make_source([[1]], keypoint_names=("tip",))], [1.0, 1.0])
    with pytest.raises(ValueError, match="images"):
        epochs.mix([one, make_source([])], [1.0, 1.0])
    for weights in ([1.0], [1.0, 0.0], []):
        with pytest.raises(ValueError, match="weight"):
            epochs.mix([one, one], weights)
    with pytest.raises(ValueError, match="balanced"):
        epochs.class_balanced_rates(make_source([[]]))
    for rates in ([0.0], [1.0, 1.0], [np.nan]):
        with pytest.raises(ValueError, match="rates"):
            epochs.RatedIndices([0], np.array(rates))
