"""Each process's share of batches, as the flags say."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxdet import feeds
from jaxdet.data import pipeline, shapes
from jaxdet.data.augment import Augmentation
from jaxdet.data.selection import Selection
from jaxdet.training import fit

CANVAS = ((64, 64),)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shapes.load("train", data_dir=tmp_path_factory.mktemp("data"), config=shapes.TINY)


@pytest.fixture(params=[(0, 1), (1, 2)], ids=["alone", "second of two"])
def share(request, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: request.param[0])
    monkeypatch.setattr(jax, "process_count", lambda: request.param[1])
    return dict(zip(("process_index", "process_count"), request.param, strict=True))


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_training_is_the_pipeline_from_a_batch_on(source, share):
    options = fit.Options(batch_size=4, seed=3)
    feed = feeds.training(
        source,
        selection=Selection(threads=2),
        options=options,
        canvases=CANVAS,
        augmentation=Augmentation(),
        rates=None,
        with_keypoints=True,
    )
    want = pipeline.train_pipeline(
        source,
        canvases=CANVAS,
        batch_size=4,
        seed=3,
        augmentation=Augmentation(),
        with_keypoints=True,
        **share,
    )
    batches = feed.batches(5)
    for number, batch in zip(range(5, 7), batches, strict=False):
        assert_same(batch, want[number])
    batches.close()
    assert feed.names[:2] == (source.annotations[0].name, source.annotations[1].name)


def test_evaluation_with_keypoints(source):
    feed = feeds.evaluation(source, canvases=CANVAS, batch_size=4, with_keypoints=True)
    assert next(feed()).instances.keypoints.shape[2:] == (len(source.keypoint_names), 3)
    assert next(feeds.evaluation(source, canvases=CANVAS, batch_size=4)()).instances[-1] is None


def test_pictures_of_a_batch(source):
    half = dataclasses.replace(
        source, annotations=tuple(a._replace(size=(128, 256)) for a in source.annotations)
    )
    last = list(feeds.evaluation(source, canvases=CANVAS, batch_size=40)())[-1]
    shown = feeds.pictures_of(last, half)
    ids = [a.image_id for a in source.annotations[40:]]
    assert shown.image_ids == [*ids, *[None] * 16]
    np.testing.assert_array_equal(shown.sizes, [[128, 256]] * 24 + [[0, 0]] * 16)
    # From 64 x 64 to a width of 256 and a height of 128.
    np.testing.assert_array_equal(shown.scales, [[4, 2]] * 24 + [[0, 0]] * 16)


def test_rows_of_all_processes_in_the_order_of_the_pictures(source, monkeypatch):
    ids = [a.image_id for a in source.annotations[:4]]
    theirs = [{"image_id": ids[1], "n": 0}, {"image_id": ids[1], "n": 1}, {"image_id": ids[3]}]
    monkeypatch.setattr(feeds.processes, "gather", lambda rows: [rows, theirs])
    ours = [{"image_id": ids[2]}, {"image_id": ids[0]}]
    got = feeds.gathered(ours, source, canvases=CANVAS)
    assert got == [ours[1], *theirs[:2], ours[0], theirs[2]]


def test_evaluation_can_be_asked_again(source, share):
    feed = feeds.evaluation(source, canvases=CANVAS, batch_size=4, max_objects=2)
    want = pipeline.eval_pipeline(source, canvases=CANVAS, batch_size=4, max_objects=2, **share)
    for _ in range(2):
        batches = list(feed())
        assert len(batches) == len(want) == 16
        for got, number in itertools.islice(zip(batches, range(16), strict=True), 2):
            assert_same(got, want[number])
