import cv2
import jax
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdet import predictor
from jaxdet.data import pipeline
from jaxdet.data.records import Annotation, DataError, Source
from jaxdet.features.networks import Network
from jaxdet.proposals.rpn import ProposalOptions
from jaxdet.structures import Detections, Images
from jaxdet.systems import architectures, classifier, faster_rcnn
from jaxdet.training import checkpoints, state
from jaxdet.weights.description import Description, to_metadata

CLASSES, CATEGORY_IDS = ("cat", "dog"), (3, 7)
CANVASES = ((64, 96), (96, 64))
# (height, width) and the white rectangle in it: larger and smaller than the canvases, of other
# shapes, one picture more than two batches of two on each canvas.
PICTURES = [
    ((200, 300), (30, 40, 150, 160)),
    ((30, 40), (5, 6, 25, 26)),
    ((301, 97), (10, 100, 90, 290)),
    ((50, 250), (20, 10, 240, 40)),
    ((97, 90), (9, 0, 80, 50)),
    ((64, 96), (10, 20, 50, 60)),
]


def annotated(i, size, box):
    empty = np.zeros(1, bool)
    return Annotation(
        10 + i, f"{i}.png", size, np.array([box], np.float32), np.array([2], np.int32), empty, empty
    )


@pytest.fixture
def source():
    def read(i):
        (height, width), (x1, y1, x2, y2) = PICTURES[i]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y1:y2, x1:x2] = 255
        return pixels

    annotations = tuple(annotated(i, *picture) for i, picture in enumerate(PICTURES))
    return Source("rectangles", CLASSES, annotations, read, CATEGORY_IDS)


def find_white(variables, images):
    """A detector of the white rectangle (label 2, not so sure) and of the whole picture (1)."""
    assert variables == "variables"
    n = len(images.pixels)
    boxes = np.zeros((n, 3, 4), np.float32)
    for i, (pixels, (height, width)) in enumerate(zip(*images[:2], strict=True)):
        boxes[i, 0] = (0, 0, width, height)
        # Also in rows of the batch that hold no picture: they must not come back.
        y, x = np.nonzero(np.array(pixels)[..., 0] > 127) if height else ([0], [0])
        boxes[i, 1] = (min(x), min(y), max(x) + 1, max(y) + 1)
    scores = np.tile(np.array([0.9, 0.6, 0], np.float32), (n, 1))
    labels = np.tile(np.array([1, 2, 0], np.int32), (n, 1))
    return Detections(boxes, scores, labels, labels > 0)


def test_boxes_come_back_in_pixels_of_their_pictures(source):
    finder = predictor.Predictor(find_white, CLASSES, CATEGORY_IDS, CANVASES)
    done = []
    rows = predictor.detect_source(finder, "variables", source, batch_size=2, progress=done.append)
    assert done[-1] == len(PICTURES) and done == sorted(done)
    assert len(rows) == 2 * len(PICTURES)
    for i, ((height, width), white) in enumerate(PICTURES):
        whole, found = (row for row in rows if row["image_id"] == 10 + i)
        assert (whole["category_id"], found["category_id"]) == CATEGORY_IDS
        assert (whole["score"], found["score"]) == pytest.approx((0.9, 0.6))
        assert whole["bbox"] == [0, 0, width, height]
        # To within a pixel of the canvas.
        x, y, w, h = found["bbox"]
        shrunk = max(1, height / 64, width / 64)
        np.testing.assert_allclose([x, y, x + w, y + h], white, atol=1.01 * shrunk)


def test_pictures_of_files_and_folders(tmp_path, rng):
    names = ["b.png", "a/deep/c.jpg", "a/d.JPG"]
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (10 + i, 20, 3)).astype(np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    source = predictor.picture_source([tmp_path / "b.png", tmp_path / "a"])
    assert [a.name for a in source.annotations] == [
        str(tmp_path / name) for name in ("b.png", "a/d.JPG", "a/deep/c.jpg")
    ]
    assert [a.size for a in source.annotations] == [(10, 20), (12, 20), (11, 20)]
    assert [a.image_id for a in source.annotations] == [1, 2, 3]
    pixels, annotation = source[0]
    assert pixels.shape == (10, 20, 3) and annotation.boxes.shape == (0, 4)


@pytest.mark.parametrize("name", ["absent.png", "absent"])
def test_pictures_that_are_not_there(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}.*no such file"):
        predictor.picture_source([tmp_path / name])


def test_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"holds no pictures.*\.png"):
        predictor.picture_source([tmp_path])


def test_file_that_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        predictor.picture_source([tmp_path / "a.png"])


def test_pictures_are_turned_upright(tmp_path):
    # Stored lying, with the note to turn it a quarter clockwise: the left column comes on top.
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    source = predictor.picture_source([tmp_path / "a.jpg"])
    read, annotation = source[0]
    assert annotation.size == read.shape[:2] == (40, 20)
    assert read[:8].min() > 200 and read[12:].max() < 50


ARCHITECTURE = architectures.Architecture(
    depth=18,
    width=4,
    n_frozen=1,
    n_stages=1,
    pyramid=False,
    anchor_sizes=((16.0, 32.0),),
    aspect_ratios=(1.0,),
    head_features=8,
)
OPTIONS = faster_rcnn.DetectOptions(
    score_threshold=0.01,
    max_detections=5,
    max_candidates=12,
    proposals=ProposalOptions(pre_nms=8, post_nms=6),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, and the variables of its checkpoint."""
    model = architectures.build(2, ARCHITECTURE)
    images = Images(np.zeros((1, 64, 96, 3), np.uint8), np.array([[64, 96]], np.int32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )
    path = tmp_path_factory.mktemp("run")
    saved = checkpoints.Checkpoints(
        path / "checkpoints",
        metadata=to_metadata(Description(ARCHITECTURE, CLASSES, CATEGORY_IDS, CANVASES, OPTIONS)),
    )
    saved.save_last(state.init_state(jax.random.key(1), variables, optax.sgd(0.1)))
    saved.close()
    return path, variables


def test_load_gives_back_what_was_trained(trained, monkeypatch):
    path, variables = trained
    built = []

    def build(description):
        built.append(description)
        return predictor.Predictor(find_white, CLASSES, CATEGORY_IDS, CANVASES)

    monkeypatch.setattr(predictor, "from_description", build)
    _, loaded = predictor.load(path)
    predictor.load(path, score_threshold=0.7)
    assert built[0] == Description(ARCHITECTURE, CLASSES, CATEGORY_IDS, CANVASES, OPTIONS)
    assert type(built[0].detect.proposals) is ProposalOptions
    assert built[1].detect == OPTIONS._replace(score_threshold=0.7)
    for kind, values in variables.items():
        jax.tree.map(np.testing.assert_array_equal, loaded[kind], jax.device_get(values))


def test_loaded_detector_runs_on_all_devices(trained, source):
    finder, variables = predictor.load(trained[0])
    assert finder.classes == CLASSES and finder.category_ids == CATEGORY_IDS
    few = Source("two", CLASSES, source.annotations[:2], source.read, CATEGORY_IDS)
    rows = predictor.detect_source(finder, variables, few, batch_size=2)
    assert {row["image_id"] for row in rows} == {10, 11}
    for row in rows:
        (height, width), _ = PICTURES[row["image_id"] - 10]
        x, y, w, h = row["bbox"]
        assert 0 <= x <= x + w <= width + 0.01 and 0 <= y <= y + h <= height + 0.01
        assert row["category_id"] in CATEGORY_IDS and 0.01 <= row["score"] <= 1


def test_a_source_may_have_fewer_classes(trained, source):
    finder, variables = predictor.load(trained[0])
    everything = predictor.detect_source(finder, variables, source, batch_size=2)
    dogs = Source("dogs", ("dog",), source.annotations, source.read, (40,))
    rows = predictor.detect_source(finder, variables, dogs, batch_size=2)
    assert rows == [r | {"category_id": 40} for r in everything if r["category_id"] == 7]
    birds = Source("birds", ("dog", "bird"), source.annotations, source.read)
    with pytest.raises(ValueError, match="does not know bird; it knows cat, dog"):
        predictor.detect_source(finder, variables, birds, batch_size=2)


def test_checkpoints_of_other_systems_are_refused(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path, metadata={"system": "yolo"})
    saved.save_last(
        state.init_state(jax.random.key(1), {"params": {"w": np.ones(2)}}, optax.sgd(0.1))
    )
    saved.close()
    with pytest.raises(ValueError, match="'yolo'"):
        predictor.load(tmp_path)


def row_of(i, box, *, score=0.9, category=7):
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": 10 + i, "category_id": category, "bbox": bbox, "score": score}


def test_draw_results_draws_the_likely_ones(source):
    image, _ = source[0]
    names = {"classes": CLASSES, "category_ids": CATEGORY_IDS}
    empty = predictor.draw_results(image, [], **names)
    unlikely = predictor.draw_results(image, [row_of(0, (50, 60, 99, 88), score=0.4)], **names)
    np.testing.assert_array_equal(unlikely, empty)
    boxed = predictor.draw_results(image, [row_of(0, (50, 60, 99, 88))], **names)
    changed = np.argwhere((boxed != empty).any(-1))
    assert len(changed)
    # The frame itself, its thickness and its tag beside it.
    other = predictor.draw_results(image, [row_of(0, (50, 60, 99, 88), category=3)], **names)
    assert (other != boxed).any()


def test_contact_sheet(source):
    rows = [row_of(i, box) for i, (_, box) in enumerate(PICTURES)]
    sheet = predictor.contact_sheet(source, rows, n_pictures=4, columns=2, width=100)
    assert sheet.dtype == np.uint8
    # Two pairs beside each other, shrunk to twice the width each.
    assert 2 * 200 <= sheet.shape[1] < 2 * 200 + 60
    blank = predictor.contact_sheet(source, [], n_pictures=4, columns=2, width=100)
    assert blank.shape == sheet.shape and (blank != sheet).any()
    one = predictor.contact_sheet(source, rows, n_pictures=1, width=100)
    assert one.shape[0] < sheet.shape[0]


def test_no_pictures_are_no_error(source):
    finder = predictor.Predictor(pytest.fail, CLASSES, CATEGORY_IDS, CANVASES)
    shown = predictor.spread(source, 0)
    assert predictor.detect_source(finder, "variables", shown, batch_size=2) == []
    assert (predictor.contact_sheet(shown, [], n_pictures=0) == 255).all()
    assert (predictor.progress_sheet(shown, {"step 1": []}) == 255).all()


def test_localization_of_guesses(source):
    finder = predictor.Predictor(find_white, CLASSES, CATEGORY_IDS, CANVASES)
    batches = pipeline.eval_pipeline(source, canvases=CANVASES, batch_size=2)
    got = predictor.measure_localization(finder, "variables", pipeline.iterate(batches))
    # The first guess is always of the other class, and has the box of the whole picture.
    covered = [
        (x2 - x1) * (y2 - y1) / (height * width) for (height, width), (x1, y1, x2, y2) in PICTURES
    ]
    assert got == {
        "top1": 0,
        "top5": 1,
        "localization_top1": 0,
        "localization_top5": 1,
        "mean_iou": pytest.approx(np.mean(covered), abs=1e-4),
    }


def test_classes_of_a_source_are_found_by_name(source):
    """In another order, and fewer of them: all objects are dogs."""
    finder = predictor.Predictor(find_white, CLASSES, CATEGORY_IDS, CANVASES)

    def measured(classes):
        annotations = tuple(
            a._replace(labels=np.full(1, classes.index("dog") + 1, np.int32))
            for a in source.annotations
        )
        other = Source("dogs", classes, annotations, source.read, tuple(range(1, len(classes) + 1)))
        return predictor.measure_source(finder, "variables", other, batch_size=4)

    want = measured(CLASSES)
    assert (want["top1"], want["top5"]) == (0, 1)
    assert measured(("dog", "cat")) == measured(("dog",)) == want
    with pytest.raises(ValueError, match="does not know mouse"):
        measured(("dog", "mouse"))


def test_measures_do_not_depend_on_what_is_shown():
    options = classifier.DetectOptions()
    described = Description(Network(width=8, n_stages=1), CLASSES, CATEGORY_IDS, CANVASES, options)
    finder = predictor.from_description(described)
    assert predictor.judge_of(described, finder) is finder
    fewer = described._replace(detect=options._replace(n_guesses=1))
    judge = predictor.judge_of(fewer, predictor.from_description(fewer))
    model = classifier.build(2, described.architecture)
    images = Images(np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 64, np.int32))
    found = judge.detect(jax.jit(model.init)(jax.random.key(0), images), images)
    np.testing.assert_array_equal(found.valid.sum(axis=1), [2, 2])  # One of each class.


def test_pictures_spread_over_a_source(source):
    assert [a.image_id for a in predictor.spread(source, 3).annotations] == [10, 12, 15]
    assert [a.image_id for a in predictor.spread(source, 9).annotations] == list(range(10, 16))
    np.testing.assert_array_equal(predictor.spread(source, 3)[1][0], source[2][0])


def test_progress_has_a_row_a_picture_and_a_column_a_time(source):
    shown = predictor.spread(source, 2)

    def row(box):
        x, y, w, h = box
        return {"image_id": 10, "category_id": 7, "score": 0.9, "bbox": [x, y, w, h]}

    results = {f"step {i}": [row((10, 10, 20 + i, 20))] for i in range(9)}
    sheet = predictor.progress_sheet(shown, results, n_columns=3)
    cells = [
        predictor.progress_sheet(predictor.spread(shown, 1), {name: results[name]})
        for name in ("step 0", "step 4", "step 8")
    ]
    height, width = cells[0].shape[:2]
    for i, cell in enumerate(cells):  # Cells overlap by a margin of 4 px.
        x = i * (width - 4)
        np.testing.assert_array_equal(
            sheet[4 : height - 4, x + 4 : x + width - 4], cell[4:-4, 4:-4]
        )
    assert sheet.shape[0] > height and sheet.shape[1] == 3 * (width - 4) + 4
    assert len({cell.tobytes() for cell in cells}) == 3
