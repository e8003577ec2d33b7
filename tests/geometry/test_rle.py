import json
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from jaxdet.geometry import rle as rle_ops

# Made by tests/golden/make_masks.py, with pycocotools.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/masks.npz")
BITMAPS = GOLDEN["bitmaps"]
HEIGHT, WIDTH = BITMAPS.shape[1:]


def runs(mask):
    """Oracle: lengths of runs down the columns, pixel by pixel."""
    counts, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column] != value:
                value = not value
                counts.append(0)
            counts[-1] += 1
    return counts


def listed(mask):
    return {"size": list(mask.shape), "counts": runs(mask)}


def golden_rles(name):
    return [{"size": [HEIGHT, WIDTH], "counts": str(counts)} for counts in GOLDEN[name]]


def polygons():
    ends = np.cumsum(GOLDEN["polygon_lengths"])[:-1]
    return [part.tolist() for part in np.split(GOLDEN["polygon_numbers"], ends)]


def test_by_hand():
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    rle = rle_ops.compress({"size": [2, 3], "counts": [1, 4, 1]})
    assert rle == rle_ops.encode(mask) == {"size": [2, 3], "counts": "141"}
    np.testing.assert_array_equal(rle_ops.decode(rle), mask)
    assert rle_ops.area(rle) == 4
    np.testing.assert_array_equal(rle_ops.to_box(rle), [0, 0, 3, 2])


def test_matches_pycocotools():
    assert [rle_ops.encode(mask) for mask in BITMAPS] == golden_rles("rle_counts")
    x, y, w, h = GOLDEN["rle_box"].T
    boxes = [rle_ops.to_box(rle) for rle in golden_rles("rle_counts")]
    np.testing.assert_array_equal(boxes, np.stack([x, y, x + w, y + h], axis=1))
    assert [rle_ops.area(rle) for rle in golden_rles("rle_counts")] == GOLDEN["rle_area"].tolist()


@pytest.mark.parametrize("form", [rle_ops.encode, listed], ids=["compressed", "listed"])
def test_decode_inverts(form, rng):
    masks = [*BITMAPS, *(rng.random((30, 9, 11)) < 0.5), np.ones((1, 1), bool)]
    # Long runs, of more than one character each.
    masks += [np.repeat(np.repeat(mask, 37, 0), 53, 1) for mask in masks[-5:-1]]
    for mask in masks:
        rle = json.loads(json.dumps(form(mask)))
        np.testing.assert_array_equal(rle_ops.decode(rle), mask)
        assert rle_ops.compress(rle) == rle_ops.encode(mask)
        assert rle_ops.area(rle) == mask.sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_encode_takes_whole_numbers(dtype):
    assert rle_ops.encode(7 * BITMAPS[0].astype(dtype)) == rle_ops.encode(BITMAPS[0])
    assert rle_ops.encode(np.asfortranarray(BITMAPS[0])) == rle_ops.encode(BITMAPS[0])


def test_empty_runs_in_between_change_nothing():
    rle = {"size": [4, 4], "counts": [3, 0, 2, 0, 0, 1, 0, 2, 8, 0]}
    same = {"size": [4, 4], "counts": [5, 3, 8]}
    assert rle_ops.compress(rle) == rle_ops.compress(same)
    np.testing.assert_array_equal(rle_ops.to_box(rle), rle_ops.to_box(same))
    assert rle_ops.area(rle) == 3


def test_polygons_match_pycocotools():
    shapes = polygons()
    got = [rle_ops.from_polygons([shape], (HEIGHT, WIDTH)) for shape in shapes]
    assert got == golden_rles("polygon_counts")
    pairs = [rle_ops.from_polygons(shapes[i : i + 2], (HEIGHT, WIDTH)) for i in range(0, 60, 2)]
    assert pairs == golden_rles("polygon_pair_counts")
    assert len({rle["counts"] for rle in got}) > 50


def test_polygon_by_hand():
    rectangle = rle_ops.from_polygons([[1, 2, 4, 2, 4, 6, 1, 6]], (7, 8))
    want = np.zeros((7, 8), bool)
    want[2:6, 1:4] = True
    np.testing.assert_array_equal(rle_ops.decode(rectangle), want)
    outside = rle_ops.from_polygons([[-9, -9, -5, -9, -5, -5]], (7, 8))
    assert rle_ops.area(outside) == 0


def test_union_is_either():
    got = rle_ops.union([rle_ops.encode(mask) for mask in BITMAPS[5:9]])
    np.testing.assert_array_equal(rle_ops.decode(got), BITMAPS[5:9].any(0))


def test_iou_matches_pycocotools():
    rles = golden_rles("rle_counts")
    np.testing.assert_allclose(rle_ops.iou(rles[:8], rles[-9:]), GOLDEN["iou"], rtol=1e-12)
    crowd = np.arange(9) % 2 == 0
    want = np.where(crowd, GOLDEN["iou_crowd"], GOLDEN["iou"])
    got = rle_ops.iou(rles[:8], rles[-9:], crowd=crowd.tolist())
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert rle_ops.iou([], rles[:3]).shape == (0, 3) and rle_ops.iou(rles[:3], []).shape == (3, 0)


GOOD = {"size": [4, 4], "counts": [16]}


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, r"rle must have size and counts\. Got None"),
        ({"size": [4, 4]}, r"rle must have size and counts"),
        (GOOD | {"counts": [3, 4]}, r"counts must add up to 4 x 4 = 16\. Got 7"),
        (GOOD | {"counts": [10**30]}, r"counts must add up to 4 x 4 = 16\. Got 10{30}$"),
        (GOOD | {"counts": []}, r"counts must add up to 4 x 4 = 16\. Got 0"),
        (GOOD | {"counts": [20, -4]}, r"counts must not be negative\. Got -4"),
        (GOOD | {"counts": [16.0]}, r"counts must be whole numbers or a string\. Got \[16\.0\]"),
        (GOOD | {"counts": [True] * 16}, r"counts must be whole numbers or a string"),
        (GOOD | {"counts": None}, r"counts must be whole numbers or a string\. Got None"),
        (GOOD | {"counts": [[1, 1, 3, 1, 3, 3]]}, r"counts must be whole numbers or a string"),
        (GOOD | {"counts": "garbage"}, r"counts is no such string: .* Got 'garbage'"),
        (GOOD | {"counts": "é"}, r"counts is no such string: .* Got 'é'"),
        (GOOD | {"counts": ""}, r"counts must add up to 4 x 4 = 16\. Got 0"),
        (GOOD | {"counts": "32"}, r"counts must add up to 4 x 4 = 16\. Got 5"),
        (GOOD | {"size": [4, 4, 1]}, r"size must be height and width, whole and positive\. Got"),
        (GOOD | {"size": [0, 4]}, r"size must be height and width, whole and positive\. Got"),
        (GOOD | {"size": [4.0, 4]}, r"size must be height and width, whole and positive\. Got"),
        (GOOD | {"size": "44"}, r"size must be height and width, whole and positive\. Got '44'"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, r"size must be at most \d+ pixels\. Got"),
    ],
)
def test_refuses_bad_run_lengths(rle, message):
    for read in (rle_ops.decode, rle_ops.compress, rle_ops.area, rle_ops.to_box):
        with pytest.raises(ValueError, match=message):
            read(rle)
    with pytest.raises(ValueError, match=message):
        rle_ops.union([GOOD, rle])
    with pytest.raises(ValueError, match=message):
        rle_ops.iou([rle], [GOOD])


def test_strings_of_any_kind_are_decoded_or_refused():
    draw = random.Random(0)
    decoded = 0
    for _ in range(3000):
        low, high = (48, 111) if draw.random() < 0.8 else (0, 300)
        size = [draw.randint(1, 4), draw.randint(1, 4)]
        counts = "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(0, 5)))
        try:
            mask = rle_ops.decode({"size": size, "counts": counts})
        except ValueError:
            continue
        decoded += 1
        assert list(mask.shape) == size
        assert rle_ops.compress({"size": size, "counts": counts}) == rle_ops.encode(mask)
    assert decoded > 10


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([], r"polygons must be a list of one or more\. Got \[\]"),
        ({"a": 1}, r"polygons must be a list of one or more"),
        ([[1, 1, 5, 1]], r"6 or more finite numbers.* Got \[1, 1, 5, 1\]"),
        ([[1, 1, 5, 1, 5, 5, 3]], r"6 or more finite numbers"),
        ([[1, 1, 5, 1, 5, float("nan")]], r"6 or more finite numbers"),
        ([[1, 1, 5, 1, 5, float("inf")]], r"6 or more finite numbers"),
        ([["1", "1", "5", "1", "5", "5"]], r"6 or more finite numbers"),
        ([[[1, 1], [5, 1], [5, 5]]], r"6 or more finite numbers"),
        ([[[1, 1], [5]]], r"a polygon must be a list of numbers"),
        ([[1, 1, 5, 1, 5, None]], r"6 or more finite numbers"),
        ([[0, 0, 1e300, 0, 5, 5]], r"polygons must be shorter than \d+ px around"),
        ([[0, 0, 3e6, 0, 3e6, 5]], r"polygons must be shorter than \d+ px around"),
        ([7], r"6 or more finite numbers"),
    ],
)
def test_refuses_bad_polygons(polygons, message):
    with pytest.raises(ValueError, match=message):
        rle_ops.from_polygons(polygons, (8, 8))
    if isinstance(polygons, list) and polygons:
        with pytest.raises(ValueError, match=message):
            rle_ops.from_polygons([[1, 1, 5, 1, 5, 5], *polygons], (8, 8))


def test_refuses_other_misuse():
    with pytest.raises(ValueError, match=r"mask must be a bitmap\. Got float64\[3, 3\]"):
        rle_ops.encode(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"mask must be a bitmap\. Got bool\[2, 3, 3\]"):
        rle_ops.encode(np.zeros((2, 3, 3), bool))
    with pytest.raises(ValueError, match=r"size must be height and width.*Got \[0, 3\]"):
        rle_ops.encode(np.zeros((0, 3), bool))
    with pytest.raises(ValueError, match=r"size must be at most"):
        rle_ops.from_polygons([[1, 1, 5, 1, 5, 5]], (2**15, 2**15))
    other = {"size": [2, 8], "counts": [16]}
    with pytest.raises(ValueError, match=r"rles must be masks of one size\. Got"):
        rle_ops.union([GOOD, other])
    with pytest.raises(ValueError, match=r"b must be masks of \[4, 4\].*Got \[2, 8\]"):
        rle_ops.iou([GOOD], [other])
    with pytest.raises(ValueError, match=r"crowd must have 1 flags\. Got 2"):
        rle_ops.iou([GOOD], [GOOD], crowd=[True, False])
    with pytest.raises(ValueError, match=r"rles must be one or more"):
        rle_ops.union([])


def test_imports_no_jax():
    # Workers that read files start with it.
    program = "import sys, jaxdet.geometry.rle; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
