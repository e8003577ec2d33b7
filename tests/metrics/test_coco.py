import copy
import json
import math
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from jaxdet.metrics import coco
from jaxdet.structures import Detections

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "coco.json").read_text())


def truth_of(*boxes, **more):
    """One picture, id 7, of one class, id 3; another class, id 4, has no objects."""
    annotations = [
        {
            "id": i + 1,
            "image_id": 7,
            "category_id": 3,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        | more
        for i, box in enumerate(boxes)
    ]
    return {
        "images": [{"id": 7, "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": annotations,
    }


def row(box, score=0.9, **more):
    return {"image_id": 7, "category_id": 3, "bbox": box, "score": score} | more


def detections(boxes, scores, labels, valid):
    return Detections(
        np.asarray(boxes, np.float32),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int32),
        np.asarray(valid),
    )


# Evaluation


@pytest.mark.parametrize(
    ("height", "ap"), [(10, 1.0), (6, 0.3), (5.9, 0.2), (9.49, 0.9), (4.9, 0.0)]
)
def test_one_object_by_hand(height, ap):
    # IoU is height / 10: as many of the thresholds 0.50, 0.55, ... 0.95 as lie at or below pass.
    got = coco.evaluate_boxes(truth_of([0, 0, 10, 10]), [row([0, 0, 10, height])])
    assert got.metrics["AP"] == pytest.approx(ap)
    assert got.metrics["AP50"] == float(height >= 5)
    assert got.metrics["AP75"] == float(height >= 7.5)
    assert got.metrics["AR100"] == pytest.approx(ap)
    assert got.per_class["cat"] == {"AP": pytest.approx(ap), "AP50": float(height >= 5)}


def test_two_objects_and_a_mistake_by_hand():
    # Right, wrong, right: precision 1 up to recall 1/2, then 2/3.
    found = [row([0, 0, 9, 9], 0.9), row([70, 70, 9, 9], 0.8), row([30, 30, 9, 9], 0.7)]
    got = coco.evaluate_boxes(truth_of([0, 0, 9, 9], [30, 30, 9, 9]), found)
    want = np.where(got.recall <= 0.5, 1, 2 / 3)
    np.testing.assert_allclose(got.precision50[:, 0], want)
    np.testing.assert_allclose(got.precision[:, 0], want)
    assert got.metrics["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert got.metrics["AR1"] == pytest.approx(0.5)
    assert got.metrics["AR10"] == pytest.approx(1)


def test_agrees_with_pycocotools():
    got = coco.evaluate_boxes(GOLDEN["truth"], GOLDEN["results"])
    want = [math.nan if x < 0 else x for x in GOLDEN["stats"]]
    assert list(got.metrics) == list(coco.METRICS)
    np.testing.assert_allclose(list(got.metrics.values()), want, rtol=1e-12)
    per_class = [numbers["AP"] for numbers in got.per_class.values()]
    assert list(got.per_class) == ["cat", "dog", "fox"]
    np.testing.assert_allclose(per_class[:2], GOLDEN["class_ap"][:2], rtol=1e-12)
    assert math.isnan(per_class[2])
    np.testing.assert_allclose(np.nanmean(got.precision), got.metrics["AP"])
    np.testing.assert_allclose(np.nanmean(got.precision50), got.metrics["AP50"])


def test_what_lies_in_a_crowd_is_no_mistake():
    truth = truth_of([0, 0, 10, 10])
    found = [row([51, 51, 10, 10], 0.9), row([65, 65, 10, 10], 0.8), row([0, 0, 10, 10], 0.7)]
    crowd = truth_of([50, 50, 40, 40], iscrowd=1)["annotations"][0] | {"id": 2}
    assert coco.evaluate_boxes(truth, found).metrics["AP50"] == pytest.approx(1 / 3)
    truth["annotations"].append(crowd)
    assert coco.evaluate_boxes(truth, found).metrics["AP50"] == pytest.approx(1)
    assert coco.evaluate_boxes(truth, found[2:]).metrics["AR100"] == pytest.approx(1)


def test_no_results_are_zeros():
    got = coco.evaluate_boxes(truth_of([0, 0, 10, 10]), [])
    small = {"AP_small", "AR_small"}
    sized = small | {"AP_medium", "AP_large", "AR_medium", "AR_large"}
    for name, number in got.metrics.items():
        assert math.isnan(number) if name in sized - small else number == 0, name
    assert got.per_class["cat"] == {"AP": 0, "AP50": 0}
    assert not got.precision50[:, 0].any()


def test_nothing_to_find_is_nan_and_null():
    got = coco.evaluate_boxes(truth_of(), [row([0, 0, 9, 9])])
    assert all(map(math.isnan, got.metrics.values()))
    text = json.dumps(coco.as_json(got), allow_nan=False)
    assert json.loads(text)["metrics"]["AP"] is None
    assert json.loads(text)["per_class"]["dog"] == {"AP": None, "AP50": None}


def test_only_the_hundred_best_of_a_picture_count():
    worst = row([0, 0, 10, 10], 0.1)
    for n_others, ap50 in ((99, 0.01), (100, 0)):
        found = [row([50, 50, 10, 10], 0.5)] * n_others + [worst]
        got = coco.evaluate_boxes(truth_of([0, 0, 10, 10]), found)
        assert got.metrics["AP50"] == pytest.approx(ap50)


def test_is_silent_and_leaves_its_arguments(capfd):
    truth, found = truth_of([0, 0, 10, 10]), [row([0, 0, 10, 10])]
    before = copy.deepcopy((truth, found))
    coco.evaluate_boxes(truth, found)
    assert capfd.readouterr() == ("", "")
    assert (truth, found) == before


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_names_an_unknown_id(field):
    found = [row([0, 0, 1, 1]), row([0, 0, 1, 1], **{field: 99})]
    with pytest.raises(ValueError, match=f"row 1: {field} 99"):
        coco.evaluate_boxes(truth_of([0, 0, 10, 10]), found)


# Rows


def test_rows_by_hand():
    # A canvas of half the width and a third of the height of the picture, 100 x 60 px.
    found = detections(
        [[[5, 6, 10, 12], [40, 18, 60, 30], [0, 0, 0, 0]]],
        [[0.75, 0.5, 0]],
        [[2, 1, 0]],
        [[True, True, False]],
    )
    rows = coco.results_from_detections(
        found,
        image_ids=[7],
        scales=np.array([[2.0, 3.0]]),
        sizes=np.array([[60, 100]]),
        category_ids=(3, 11),
    )
    assert rows == [
        {"image_id": 7, "category_id": 11, "bbox": [10, 18, 10, 18], "score": 0.75},
        {"image_id": 7, "category_id": 3, "bbox": [80, 54, 20, 6], "score": 0.5},
    ]
    json.dumps(rows)


def test_rows_of_poses_by_hand():
    joints = np.array([[[[1, 2], [3.004, 4.006]], [[5, 6], [7, 8]]]] * 3, np.float32)
    got = coco.results_from_poses(
        joints,
        np.array([[1, 2]] * 3, np.int32),
        np.array([[True, True], [True, True], [False, True]]),
        image_ids=[7, None, 9],
        scales=np.array([[2, 3], [1, 1], [1, 1]], np.float32),
        category_ids=(3, 4),
    )
    common = {"score": 1.0}
    assert got == [
        {"image_id": 7, "category_id": 3, "keypoints": [2, 6, 1, 6.01, 12.02, 1]} | common,
        {"image_id": 7, "category_id": 4, "keypoints": [10, 18, 1, 14, 24, 1]} | common,
        {"image_id": 9, "category_id": 4, "keypoints": [5, 6, 1, 7, 8, 1]} | common,
    ]
    json.dumps(got)


def test_padded_pictures_have_no_rows():
    one = ([[0, 0, 5, 5]], [0.5], [1], [True])
    found = detections(*([part] * 3 for part in one))
    rows = coco.results_from_detections(
        found,
        image_ids=[4, None, -1],
        scales=np.ones((3, 2)),
        sizes=np.full((3, 2), 9),
        category_ids=(1,),
    )
    assert [r["image_id"] for r in rows] == [4]


def test_true_boxes_get_full_marks(tmp_path, rng):
    truth = copy.deepcopy(GOLDEN["truth"])
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    ids = [image["id"] for image in truth["images"]]
    scales = rng.uniform(0.5, 2, (len(ids), 2))
    boxes, labels = np.zeros((len(ids), 8, 4)), np.zeros((len(ids), 8))
    for i, id_ in enumerate(ids):
        mine = [a for a in truth["annotations"] if a["image_id"] == id_]
        for j, a in enumerate(mine):
            x, y, w, h = a["bbox"]
            boxes[i, j] = np.array([x, y, x + w, y + h]) / np.tile(scales[i], 2)
            labels[i, j] = {2: 1, 5: 2, 9: 3}[a["category_id"]]
    found = detections(boxes, np.full(labels.shape, 0.9), labels, labels > 0)
    rows = coco.results_from_detections(
        found,
        image_ids=ids,
        scales=scales,
        sizes=np.full((len(ids), 2), 480),
        category_ids=(2, 5, 9),
    )
    coco.write_results(tmp_path / "results.json", rows)
    got = coco.evaluate_boxes(truth, tmp_path / "results.json")
    assert got.metrics["AP"] == pytest.approx(1)
    assert got.metrics["AR100"] == pytest.approx(1)


def test_rejects_scales_of_other_pictures():
    found = detections([[[0, 0, 5, 5]]], [[0.5]], [[1]], [[True]])
    with pytest.raises((jaxtyping.TypeCheckError, ValueError)):
        coco.results_from_detections(
            found,
            image_ids=[1],
            scales=np.ones((2, 2)),
            sizes=np.ones((1, 2), int),
            category_ids=(1,),
        )


# Files


def test_files_round_trip_and_replace(tmp_path):
    path = tmp_path / "new" / "results.json"
    coco.write_results(path, [row([0, 0, 1, 1])])
    coco.write_results(path, GOLDEN["results"])
    assert coco.read_results(path) == GOLDEN["results"]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    coco.write_results(path, [row([0, 0, 1, 1])])
    with pytest.raises(ValueError, match="JSON"):
        coco.write_results(path, [row([0, 0, 1, math.nan])])
    assert coco.read_results(path) == [row([0, 0, 1, 1])]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row([0, 0, 1]), "bbox should be four"),
        (row([0, 0, 1, "x"]), "bbox should be four"),
        (row([0, 0, -1, 1]), "w >= 0"),
        (row([0, 0, 1, 1], score=None), "score should be"),
        (row([0, 0, 1, 1], image_id="7"), "image_id should be"),
        (row([0, 0, 1, 1], category_id=1.5), "category_id should be"),
        ({"image_id": 7, "category_id": 3, "score": 1}, "no 'bbox'"),
        ([1], "expected an object"),
    ],
    ids=str,
)
def test_names_the_faulty_row_and_field(tmp_path, bad, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row([0, 0, 1, 1]), bad]))
    with pytest.raises(ValueError, match=rf"results\.json: row 1: .*{message}"):
        coco.read_results(path)


@pytest.mark.parametrize("content", [b'[{"image_id": 1', b"{}", b"\x89PNG\xff"])
def test_names_a_file_that_is_no_list_of_results(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        coco.evaluate_boxes(truth_of(), path)


# Masks and keypoints


def runs_of(mask):
    """COCO's uncompressed run lengths as its string, by hand: columns, off first."""
    flat = np.asarray(mask).T.reshape(-1).astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
            if not more:
                break
    return {"size": list(mask.shape), "counts": text}


def stripe(height):
    """The upper part of a 10 x 10 square in the corner, as a mask of 100 x 100."""
    mask = np.zeros((100, 100), bool)
    mask[:height, :10] = True
    return mask


SQUARE = [[0, 0, 10, 0, 10, 10, 0, 10]]


@pytest.mark.parametrize(("height", "ap"), [(10, 1.0), (6, 0.3), (9, 0.9), (4, 0.0)])
def test_one_mask_by_hand(height, ap):
    """The box would be right each time; the mask's IoU is height / 10."""
    found = [row([0, 0, 10, 10], segmentation=runs_of(stripe(height)))]
    got = coco.evaluate_masks(truth_of([0, 0, 10, 10], segmentation=SQUARE), found)
    assert got.metrics["AP"] == pytest.approx(ap)
    assert list(got.metrics) == list(coco.METRICS)


def test_masks_are_sized_by_their_area():
    """A thin mask in a large box is small; wrong ones of other sizes do not count there."""
    mask = np.eye(100, dtype=bool)
    truth = truth_of([0, 0, 100, 100], segmentation=runs_of(mask), area=100)
    found = [row([0, 0, 100, 100], segmentation=runs_of(mask))]
    found.append(row([0, 0, 100, 100], 0.95, segmentation=runs_of(np.ones((100, 100), bool))))
    got = coco.evaluate_masks(truth, found)
    assert got.metrics["AP_small"] == pytest.approx(1)
    assert math.isnan(got.metrics["AP_large"]) and got.metrics["AP"] == pytest.approx(0.5)


def test_objects_without_masks_count_neither_way():
    truth = truth_of([0, 0, 10, 10], segmentation=SQUARE)
    more = truth_of([50, 50, 20, 20])["annotations"][0] | {"id": 2}
    truth["annotations"].append(more)
    found = [row([0, 0, 10, 10], segmentation=runs_of(stripe(10)))]
    inside = np.zeros((100, 100), bool)
    inside[55:60, 55:60] = True
    found.append(row([55, 55, 5, 5], 0.95, segmentation=runs_of(inside)))
    assert coco.evaluate_masks(truth, found).metrics["AP"] == pytest.approx(1)
    assert "segmentation" not in more and more["iscrowd"] == 0


SIGMAS = (0.05, 0.1)


def pose(distance, v=2):
    """Two keypoints, the second so many pixels away from where it is."""
    return [10, 10, v, 40 + distance, 40, v]


def test_oks_by_hand():
    area = 900
    truth = truth_of([0, 0, 30, 30], keypoints=pose(0), area=area)
    for oks in (0.99, 0.9 + 1e-6, 0.75 + 1e-6, 0.6 + 1e-6, 0.55 - 1e-6):
        # The mean of 1 and exp(-d^2 / (2 area (2 sigma)^2)) is the OKS.
        distance = math.sqrt(-math.log(2 * oks - 1) * 2 * area * (2 * SIGMAS[1]) ** 2)
        found = [row([0, 0, 1, 1], keypoints=pose(distance, 1))]
        got = coco.evaluate_keypoints(truth, found, sigmas=SIGMAS)
        assert got.metrics["AP"] == pytest.approx(
            sum(oks >= t / 100 for t in range(50, 100, 5)) / 10
        )
    assert list(got.metrics) == list(coco.KEYPOINT_METRICS)
    assert "AR75" in coco.as_table(got) and coco.as_json(got)["metrics"]["AP50"] == 1


def test_unlabelled_keypoints_do_not_count():
    truth = truth_of([0, 0, 30, 30], keypoints=[10, 10, 2, 0, 0, 0], area=900)
    truth["annotations"].append(truth_of([50, 50, 9, 9])["annotations"][0] | {"id": 2})
    found = [row([0, 0, 1, 1], keypoints=pose(90))]
    got = coco.evaluate_keypoints(truth, found, sigmas=SIGMAS)
    assert got.metrics["AP"] == got.metrics["AR"] == pytest.approx(1)


def test_persons_have_seventeen_keypoints():
    assert len(coco.PERSON_SIGMAS) == 17
    truth = truth_of([0, 0, 30, 30], keypoints=pose(0))
    with pytest.raises(ValueError, match="sigmas must be one a keypoint: got 17, and annotation 0"):
        coco.evaluate_keypoints(truth, [], sigmas=coco.PERSON_SIGMAS)
    with pytest.raises(ValueError, match="row 0: 3 numbers, 6 expected"):
        coco.evaluate_keypoints(truth, [row([0, 0, 1, 1], keypoints=[1, 2, 2])], sigmas=SIGMAS)


def test_boxes_are_looked_at_alone():
    """Masks and keypoints in the rows or the truth do not change the numbers of boxes."""
    truth = truth_of([0, 0, 10, 10], segmentation=SQUARE, keypoints=pose(0))
    found = [row([0, 0, 10, 10], segmentation=runs_of(stripe(2)), keypoints=pose(50))]
    assert coco.evaluate_boxes(truth, found).metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("segmentation", SQUARE, "must have size and counts"),
        ("segmentation", {"size": [100, 100], "counts": 3}, "counts must be whole"),
        ("segmentation", runs_of(np.ones((50, 50), bool)), r"has size \[50, 50\], its picture"),
        ("keypoints", [1, 2, math.nan], "should be finite numbers"),
        ("keypoints", "text", "should be finite numbers"),
    ],
    ids=str,
)
def test_names_what_is_wrong_with_masks_and_keypoints(field, value, message):
    truth = truth_of([0, 0, 10, 10], segmentation=SQUARE, keypoints=pose(0))
    with pytest.raises(ValueError, match=f"row 0: {field}:? .*{message}"):
        if field == "segmentation":
            coco.evaluate_masks(truth, [row([0, 0, 1, 1], segmentation=value)])
        else:
            coco.evaluate_keypoints(truth, [row([0, 0, 1, 1], keypoints=value)], sigmas=SIGMAS)


def test_reads_results_of_masks(tmp_path):
    rows = [row([0, 0, 10, 10], segmentation=runs_of(stripe(10)))]
    coco.write_results(tmp_path / "masks.json", rows)
    truth = truth_of([0, 0, 10, 10], segmentation=SQUARE)
    got = coco.evaluate_masks(truth, tmp_path / "masks.json")
    assert got.metrics["AP"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"masks.json: row 0: no 'keypoints'"):
        coco.read_results(tmp_path / "masks.json", field="keypoints")
