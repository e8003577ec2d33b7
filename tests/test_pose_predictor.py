"""A cascade that is known: centers of boxes first, then their corners."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdet import pose_predictor
from jaxdet.data.records import Annotation, Source
from jaxdet.features.networks import Network
from jaxdet.pose_predictor import PosePredictor
from jaxdet.systems import deep_pose
from jaxdet.systems.deep_pose import Architecture, Poses

CANVASES = ((64, 96), (96, 64))
LIMBS = ((0, 1),)
MOVE = 0.0  # Pixels a picture.


def annotated(i, size, *objects):
    """Objects are (box, two joints, crowd, difficult)."""
    boxes, joints, crowd, difficult = zip(*objects, strict=True) if objects else ([], [], [], [])
    return Annotation(
        10 + i,
        f"{i}.png",
        size,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([2 - (i + n) % 2 for n in range(len(objects))], np.int32),
        np.array(crowd, bool),
        np.array(difficult, bool),
        keypoints=np.array(joints, np.float32).reshape(-1, 2, 3),
    )


def corners(x1, y1, x2, y2):
    return [(x1, y1, 2), (x2, y2, 2)]


A, B, C, D = (10, 10, 50, 40), (20, 40, 100, 120), (5, 5, 30, 30), (40, 60, 120, 180)
ANNOTATIONS = (
    annotated(0, (64, 96), (A, corners(*A), 0, 0), (C, corners(*C), 1, 0)),
    # Twice as large as its canvas; the first object's second joint is in the middle.
    annotated(1, (192, 128), (B, [(20, 40, 2), (60, 80, 1)], 0, 0), (D, corners(*D), 0, 1)),
    annotated(2, (64, 96)),
    annotated(3, (64, 96), (C, [(0, 0, 0), (0, 0, 0)], 0, 0)),
)
SOURCE = Source(
    "corners",
    ("cat", "dog"),
    ANNOTATIONS,
    lambda i: np.full((*ANNOTATIONS[i].size, 3), 60 * i, np.uint8),
    category_ids=(3, 7),
    keypoint_names=("low", "high"),
)


def predict(variables, inputs):
    assert variables == "variables"
    images, boxes, valid = inputs
    high = boxes.reshape(*boxes.shape[:2], 2, 2)
    middle = np.broadcast_to(high.mean(axis=2, keepdims=True), high.shape)
    # As if the picture's brightness moved what is found in it.
    seen = np.asarray(images.pixels[:, 0, 0, 0] // 60, np.float32)
    moved = MOVE * seen[:, None, None, None, None]
    joints = (np.stack([middle, high], axis=2) + moved) * valid[..., None, None, None]
    return Poses(joints.astype(np.float32), valid)


FINDER = PosePredictor(predict, (0, 1), CANVASES)


def test_measures_by_hand():
    got = pose_predictor.measure(FINDER, "variables", SOURCE, batch_size=2, limbs=LIMBS)
    # Of A and B, first joints are right and one of the second ones; centers are right once.
    want = {"PCK": 0.75, "PCK1": 0.25, "PCK2": 0.75, "PDJ": 0.75, "PCP": 0.5}
    assert got == pytest.approx(want)


def test_errors_by_hand():
    found = pose_predictor.measure_errors(FINDER, "variables", SOURCE, batch_size=2)
    # B's second joint is off by (40, 40) px, as far as its joints are apart; A's by nothing.
    off = np.sqrt(0.5) / 2
    for got in found:
        np.testing.assert_allclose(got, [[0, 0], [off, off]], atol=1e-5)


def test_poses_come_back_in_pixels_of_their_pictures():
    rows = pose_predictor.find(FINDER, "variables", SOURCE, batch_size=2)
    # Of one canvas after the other; the crowd has none, the others have, labelled or not.
    want = [(10, A, 7), (13, C, 3), (11, B, 3), (11, D, 7)]
    assert len(rows) == len(want)
    for row, (image_id, (x1, y1, x2, y2), category_id) in zip(rows, want, strict=True):
        assert row == {
            "image_id": image_id,
            "category_id": category_id,
            "keypoints": [x1, y1, 1, x2, y2, 1],
            "score": 1.0,
        }


def test_boxes_alone_are_enough_to_find_poses():
    bare = tuple(a._replace(keypoints=None) for a in ANNOTATIONS)
    source = dataclasses.replace(SOURCE, annotations=bare, keypoint_names=())
    got, want = (
        pose_predictor.find(FINDER, "variables", x, batch_size=2) for x in (source, SOURCE)
    )
    assert got == want


@pytest.mark.parametrize("batch_size", [2, 4])
def test_every_object_is_looked_at_in_its_own_picture(monkeypatch, batch_size):
    """Three objects of the second picture, more than there are pictures in a small batch."""
    monkeypatch.setitem(globals(), "MOVE", 8.0)
    crowded = annotated(1, (64, 96), *[(box, corners(*box), 0, 0) for box in (A, C, A)])
    annotations = (ANNOTATIONS[0], crowded)

    def read(i):
        return np.full((64, 96, 3), 60 * i, np.uint8)

    source = dataclasses.replace(SOURCE, annotations=annotations, read=read)
    rows = pose_predictor.find(FINDER, "variables", source, batch_size=batch_size)
    found = {(row["image_id"], *row["keypoints"][:2], *row["keypoints"][3:5]) for row in rows}
    assert len(rows) == 4
    assert found == {(10, *A), *((11, *(v + 8 for v in box)) for box in (A, C))}


def test_draws_as_many_as_asked_for():
    def sheet(n_pictures, finder=FINDER):
        return pose_predictor.contact_sheet(
            finder, "variables", SOURCE, batch_size=2, n_pictures=n_pictures, columns=1
        )

    one, two, more = sheet(1), sheet(2), sheet(9)
    assert one.shape[0] < two.shape[0] and two.shape[1] == one.shape[1]
    np.testing.assert_array_equal(two, more)  # There are no others that count.
    blank = sheet(0, PosePredictor(pytest.fail, (0, 1), CANVASES))  # Nothing is looked at.
    assert blank.size and (blank == 255).all()


def test_nothing_labelled_is_no_error():
    bare = Source(
        "bare",
        SOURCE.classes,
        ANNOTATIONS[2:],
        lambda i: SOURCE.read(i + 2),
        keypoint_names=SOURCE.keypoint_names,
    )
    got = pose_predictor.measure(FINDER, "variables", bare, batch_size=2, limbs=LIMBS)
    assert set(got.values()) == {0.0}
    sheet = pose_predictor.contact_sheet(FINDER, "variables", bare, batch_size=2, n_pictures=3)
    assert (sheet == 255).all()


def test_compiles_the_cascade_up_to_a_stage():
    spec = Architecture(2, Network(width=8, n_stages=1), 0, (8,), 0.0, (0, 1), crop_size=16)
    model = deep_pose.build(2, spec)
    images = np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 64, np.int32)
    inputs = deep_pose.Images(*images), np.tile(np.float32(A), (2, 1, 1)), np.ones((2, 1), bool)
    variables = jax.jit(model.init)(jax.random.key(0), inputs[0])
    whole = jax.jit(lambda v, x: deep_pose.predict(model, v, *x))(variables, inputs)
    for n_stages in (1, 2):
        finder = pose_predictor.compile_stages(model, n_stages=n_stages, canvases=CANVASES)
        assert finder.torso == (0, 1) and finder.canvases == CANVASES
        got = finder.predict(variables, inputs)
        assert got.joints.shape == (2, 1, n_stages, 2, 2)
        np.testing.assert_allclose(got.joints, whole.joints[:, :, :n_stages], atol=1e-3)


def test_measures_are_compiled_once(monkeypatch):
    first = pose_predictor.measure(FINDER, "variables", SOURCE, batch_size=2, limbs=LIMBS)
    monkeypatch.setattr(pose_predictor.pose, "pck", pytest.fail)  # Not traced again.
    again = pose_predictor.measure(FINDER, "variables", SOURCE, batch_size=2, limbs=LIMBS)
    assert again == first
