"""A detector that sees the middle of every picture, as sure as its variables say."""

import json

import cv2
import jax
import numpy as np
import optax
import pytest

from jaxdet import predictor, reports
from jaxdet.data import shapes
from jaxdet.data.selection import Selection
from jaxdet.predictor import Predictor
from jaxdet.structures import Detections
from jaxdet.training import checkpoints, logging, state

CANVASES = ((64, 64),)


def see_the_middle(variables, images):
    n = len(images.pixels)
    boxes = np.tile(np.array([16, 16, 48, 48], np.float32), (n, 1, 1))
    scores = np.full((n, 1), variables["params"]["sure"], np.float32)
    return Detections(boxes, scores, np.ones((n, 1), np.int32), np.ones((n, 1), bool))


def finder_of(source):
    return Predictor(see_the_middle, source.classes, source.category_ids, CANVASES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("n_pictures", [2, 0])
def test_watch_detects_and_draws(data_dir, tmp_path, n_pictures):
    source = shapes.load("validation", data_dir=data_dir, config=shapes.TINY)
    log = logging.MetricsLog(tmp_path)
    watch = reports.watch(
        finder_of(source), source, n_pictures=n_pictures, batch_size=4, log=log, columns=1
    )
    variables = {"params": {"sure": 0.75}}
    rows = watch(variables, 12)
    assert rows == predictor.detect_source(finder_of(source), variables, source, batch_size=4)
    assert len(rows) == len(source)
    log.close()
    drawn = cv2.imread(str(tmp_path / "pictures" / "val_000012.png"))[..., ::-1]
    want = predictor.contact_sheet(source, rows, n_pictures=n_pictures, columns=1)
    np.testing.assert_array_equal(drawn, want)
    assert (drawn == 255).all() == (n_pictures == 0)
    board = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"val" in board and b"PNG" in board


def test_on_test_looks_with_the_best_checkpoint(data_dir, tmp_path, capsys):
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    for sure, save in ((0.75, saved.save_best), (0.25, saved.save_last)):
        variables = {"params": {"sure": np.float32(sure)}}
        save(state.init_state(jax.random.key(0), variables, optax.sgd(0.1)))
    saved.close()
    source = shapes.load("test", data_dir=data_dir, config=shapes.TINY)
    variables, test, rows = reports.on_test(
        finder_of(source),
        Selection(scenes="tiny", data_dir=data_dir),
        out=tmp_path,
        batch_size=4,
        n_pictures=2,
    )
    assert len(variables["params"]["sure"].devices()) == jax.local_device_count()
    assert [a.image_id for a in test.annotations] == [a.image_id for a in source.annotations]
    assert len(rows) == len(source) and {row["score"] for row in rows} == {0.75}
    assert json.loads((tmp_path / "detections.json").read_text()) == rows
    assert cv2.imread(str(tmp_path / "pictures" / "test.png")) is not None
    assert f"{len(source)} images" in capsys.readouterr().out
