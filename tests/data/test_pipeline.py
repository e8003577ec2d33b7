import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest

from jaxdet.data import epochs, pipeline
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Annotation, Bitmap, DataError, Polygons, Source
from jaxdet.data.resize import ShortSide

SIZES = [(32, 32)] * 12 + [(20, 40)] * 6
CANVASES = ((32, 32), (24, 48))
VARIED = Augmentation(scale=(0.7, 1.4), brightness=0.3)


def make_source(sizes=SIZES, counts=(0, 1, 3), reads=None):
    """Flat pictures whose grey is 10 times their index; object numbers repeat `counts`."""
    annotations = []
    for index, size in enumerate(sizes):
        n = counts[index % len(counts)]
        low = np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
        boxes = np.hstack([low, low + 8])
        flags = np.zeros(n, bool)
        annotations.append(
            Annotation(index, f"{index}", size, boxes, np.full(n, 2, np.int32), flags, flags)
        )

    def read(index):
        if reads is not None:
            reads.append(index)
        return np.full((*sizes[index], 3), 10 * index, np.uint8)

    return Source("test", ("a", "b"), tuple(annotations), read)


# All that draws random numbers, and all that a batch can hold.
EVERYTHING = Augmentation(
    vertical_flip=0.5,
    scale=(0.5, 1.5),
    brightness=0.2,
    hsv=(0.1, 0.2, 0.2),
    distort=0.5,
    rotation=15.0,
    expand=0.3,
    patch=0.3,
    crop=0.8,
    mosaic=0.4,
    copy_paste=0.5,
)


def draw_picture(index, *, size):
    """Noise of the picture's own; can be sent to another process."""
    return np.random.default_rng(index).integers(0, 256, (*size, 3)).astype(np.uint8)


def read_picture(index, *, sizes):
    return draw_picture(index, size=sizes[index])


def rich_source():
    """Pictures with outlines, bitmaps and keypoints."""
    plain, annotations = make_source(), []
    for annotation in plain.annotations:
        n = len(annotation.labels)
        outlines, keypoints = [], np.zeros((n, 2, 3), np.float32)
        for i, (x1, y1, x2, y2) in enumerate(annotation.boxes.tolist()):
            ring = np.array([[x1, y1], [x2, y1], [x2, y2]], np.float32)
            bitmap = Bitmap(np.tri(8, dtype=bool), (int(x1), int(y1)))
            outlines.append((Polygons((ring,)), bitmap, None)[i % 3])
            keypoints[i] = [[x1 + 1, y1 + 1, 2], [x2 - 1, y2 - 1, 1]]
        annotations.append(annotation._replace(segments=tuple(outlines), keypoints=keypoints))
    return dataclasses.replace(
        plain,
        annotations=tuple(annotations),
        read=functools.partial(read_picture, sizes=SIZES),
        keypoint_names=("left", "right"),
        keypoint_pairs=((0, 1),),
    )


def make_rich(**options):
    source = rich_source()
    rates = np.linspace(0.2, 2.5, len(source))
    defaults = {"augmentation": EVERYTHING, "mask_side": 14, "with_keypoints": True}
    return make(source, **({"rates": rates} | defaults | options))


def make(source=None, **options):
    defaults = {"canvases": CANVASES, "batch_size": 4, "seed": 1, "augmentation": VARIED}
    source = make_source() if source is None else source
    return pipeline.train_pipeline(source, **(defaults | options))


def assert_same(got, want):
    assert got.keys is None and want.keys is None
    for a, b in zip(
        (*got.images[:2], *got.instances, *got[2:4]),
        (*want.images[:2], *want.instances, *want[2:4]),
        strict=True,
    ):
        assert (a is None) == (b is None)
        np.testing.assert_array_equal(a, b)


def test_batch_is_a_function_of_seed_and_number():
    one, two = make(), make()
    late = two[9]  # Before any other.
    for number in range(9):
        assert_same(one[number], two[number])
    assert_same(one[9], late)
    other = make(seed=2)
    assert any((one[i].records != other[i].records).any() for i in range(3))


def test_shapes_and_padding():
    source = make_source()
    for number in range(6):
        batch = make(source, augmentation=Augmentation(0.0))[number]
        assert batch.images.pixels.shape[1:3] in CANVASES
        assert batch.instances.boxes.shape == (4, 3, 4)
        assert batch.positions.tolist() == [0, 1, 2, 3]
        for row, record in enumerate(batch.records):
            n = len(source.annotations[record].labels)
            assert batch.instances.valid[row].tolist() == [True] * n + [False] * (3 - n)
            assert batch.instances.labels[row].tolist() == [2] * n + [0] * (3 - n)
            assert not batch.instances.boxes[row, n:].any()
            assert batch.images.pixels[row].max() == 10 * record
            if SIZES[record] == (32, 32):  # Not resized.
                np.testing.assert_array_equal(
                    batch.instances.boxes[row, :n], source.annotations[record].boxes
                )


def test_epochs_cover_everything_in_new_orders():
    """12 square images in batches of 5: 12 batches are 5 epochs."""
    source = make_source(SIZES[:12])
    batches = make(source, batch_size=5)
    seen = np.concatenate([batches[i].records for i in range(12)]).reshape(5, 12)
    for epoch in seen:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in seen}) == 5


def test_an_image_is_varied_anew_each_time():
    varied = Augmentation(scale=(0.3, 1.0))
    batches = make(make_source(SIZES[:1]), batch_size=6, augmentation=varied)
    sizes = np.concatenate([batches[i].images.sizes for i in range(3)])
    assert len({tuple(size) for size in sizes}) >= 9


def test_canvases_take_turns_by_share():
    batches = make()
    shapes = [batches[i].images.pixels.shape[1:3] for i in range(30)]
    assert shapes.count((32, 32)) == 20 and shapes.count((24, 48)) == 10
    for i in range(30):
        assert len({SIZES[r] for r in batches[i].records}) == 1


def test_processes_share_the_global_batch():
    whole = make()
    parts = [make(process_index=p, process_count=2) for p in (0, 1)]
    for number in range(6):
        want = whole[number]
        for part in parts:
            got = part[number]
            rows = got.positions
            np.testing.assert_array_equal(got.records, want.records[rows])
            np.testing.assert_array_equal(got.images.pixels, want.images.pixels[rows])
            np.testing.assert_array_equal(got.instances.boxes, want.instances.boxes[rows])
        assert sorted(np.concatenate([p[number].positions for p in parts])) == [0, 1, 2, 3]


def test_everything_is_a_function_of_seed_and_number():
    """Mosaics, pasted objects, rates, masks and keypoints too; hosts deal out the same batch."""
    one = make_rich()
    late = one[5]
    parts = [make_rich(process_index=p, process_count=2) for p in (0, 1)]
    n_objects = 0
    for number in (2, 5):
        want = make_rich()[number]
        assert_same(late if number == 5 else one[number], want)
        for part in parts:
            got = part[number]
            rows = got.positions
            np.testing.assert_array_equal(got.records, want.records[rows])
            np.testing.assert_array_equal(got.images.pixels, want.images.pixels[rows])
            for a, b in zip(got.instances, want.instances, strict=True):
                np.testing.assert_array_equal(a, b[rows])
        n_objects += want.instances.valid.sum()
        assert want.instances.masks.shape == (4, 15, 14, 14)
        assert want.instances.keypoints.shape == (4, 15, 2, 3)
        known = want.instances.masks.any(axis=(2, 3))
        assert not known[~want.instances.valid].any()
    assert n_objects > 10


@pytest.fixture(scope="module")
def rich_batches():
    batches = make_rich()
    return [batches[number] for number in range(2, 5)]


@pytest.mark.parametrize(("threads", "workers"), [(3, 0), (1, 2)])
def test_everything_is_the_same_for_any_readers(rich_batches, threads, workers):
    read = pipeline.iterate(make_rich(), 2, threads=threads, workers=workers)
    for want in rich_batches:
        assert_same(next(read), want)
    read.close()
    assert not multiprocessing.active_children()


def test_dead_workers_are_an_error():
    read = pipeline.iterate(make(rich_source()), threads=1, workers=2)
    next(read)
    victim = sorted(multiprocessing.active_children(), key=lambda w: w.pid)[1].pid
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(DataError, match=rf"of 2; .* worker 1 \(process {victim}\): -9\. "):
        for _ in range(20):
            next(read)
    read.close()
    assert not multiprocessing.active_children()


def die(index):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_never_gave_a_batch_is_named_too():
    source = dataclasses.replace(rich_source(), read=die)
    with pytest.raises(DataError, match=r"worker is dead, of 2; .* memory\): -9\. The same"):
        next(pipeline.iterate(make(source), threads=1, workers=2))
    assert not multiprocessing.active_children()


def test_signals_to_all_processes_are_left_to_the_first():
    read = pipeline.iterate(make(rich_source()), threads=1, workers=2)
    for _ in range(2):  # Each worker gives one in turn, so both have begun.
        next(read)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    for _ in range(20):
        next(read)
    read.close()
    assert not multiprocessing.active_children()


def stuck(index):
    if index:
        time.sleep(60)
    return index


@pytest.mark.parametrize("leave", ["close", "throw"])
def test_nobody_waits_for_workers_that_are_stuck(leave):
    read = pipeline.iterate(grain.MapDataset.range(9).map(stuck), threads=0, workers=2)
    assert next(read) == 0
    begun = time.perf_counter()
    if leave == "close":
        read.close()
    else:  # A signal that comes between two batches.
        with pytest.raises(KeyboardInterrupt):
            read.throw(KeyboardInterrupt())
    assert time.perf_counter() - begun < 20
    assert not multiprocessing.active_children()


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_pipeline
from jaxdet.data import pipeline
read = pipeline.iterate(test_pipeline.make(test_pipeline.rich_source()), threads=1, workers=2)
next(read)
print("begun", flush=True)
time.sleep(60)
"""


def test_workers_end_with_a_process_that_is_killed():
    command = [sys.executable, "-c", PROGRAM, os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.communicate(timeout=30)  # The pipes have an end once no worker holds them.


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_iterate_gives_the_same_batches(threads):
    batches = make()
    read = pipeline.iterate(make(), 5, threads=threads, buffer=2)
    for number, batch in enumerate(itertools.islice(read, 8), start=5):
        assert_same(batch, batches[number])
    read.close()


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    read = pipeline.iterate(make(), threads=2)
    next(read)
    assert set(threading.enumerate()) - before
    read.close()
    deadline = time.time() + 5
    while set(threading.enumerate()) - before and time.time() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - before


def test_errors_reach_the_reader():
    def bad(index):
        raise ValueError(f"picture {index} is bad")

    source = make_source(SIZES[:1])
    source = Source("bad", source.classes, source.annotations, bad)
    with pytest.raises(ValueError, match="picture 0 is bad"):
        next(pipeline.iterate(make(source), threads=1))


def test_eval_reads_every_image_once():
    source = make_source()
    batches = pipeline.eval_pipeline(source, canvases=CANVASES, batch_size=5)
    assert len(batches) == 3 + 2
    read = list(pipeline.iterate(batches, threads=2))
    records = np.concatenate([batch.records for batch in read])
    assert records[records >= 0].tolist() == list(range(18))
    for batch in read:
        assert batch.images.pixels.shape[0] == 5
        spare = batch.records < 0
        assert not batch.images.sizes[spare].any() and not batch.instances.valid[spare].any()
        assert (batch.images.sizes[~spare] > 0).all()
    assert (records == -1).sum() == 7


def test_eval_with_masks_and_keypoints():
    source = rich_source()
    batches = pipeline.eval_pipeline(
        source, canvases=CANVASES, batch_size=5, mask_side=14, with_keypoints=True
    )
    for batch in batches:
        assert batch.instances.masks.shape == (5, 3, 14, 14)
        for row, record in enumerate(batch.records):
            n = len(source.annotations[record].labels) if record >= 0 else 0
            known = [True, True, False][:n] + [False] * (3 - n)
            assert batch.instances.masks[row].any(axis=(1, 2)).tolist() == known
            assert (batch.instances.keypoints[row, :n, :, 2] > 0).all()


def test_eval_by_a_rule_for_sizes():
    """Each image on its own canvas, resized as torchvision does, boxes too."""
    source = make_source([(20, 40), (30, 30), (21, 40)], counts=(1,))
    rule = ShortSide(40, 64, 16)
    batches = list(
        pipeline.iterate(pipeline.eval_pipeline(source, canvases=rule, batch_size=2), threads=0)
    )
    assert [batch.records.tolist() for batch in batches] == [[0, -1], [1, -1], [2, -1]]
    shapes = [(32, 64), (48, 48), (48, 64)]
    assert [batch.images.pixels.shape for batch in batches] == [(2, *s, 3) for s in shapes]
    sizes = [(32, 64), (40, 40), (33, 64)]
    assert [tuple(batch.images.sizes[0]) for batch in batches] == sizes
    for batch, (height, width), index in zip(batches, sizes, range(3), strict=True):
        pixels = batch.images.pixels
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels[0, :height, :width], source.read(index)[0, 0, 0])
        assert not pixels[0, height:].any() and not pixels[0, :, width:].any()
        old_height, old_width = source.annotations[index].size
        scale = np.array([width / old_width, height / old_height] * 2)
        want = source.annotations[index].boxes[0] * scale
        np.testing.assert_allclose(batch.instances.boxes[0, 0], want, rtol=1e-6)


def test_eval_over_processes():
    source = make_source(SIZES[:12])
    records = [
        batch.records
        for p in (0, 1)
        for batch in pipeline.iterate(
            pipeline.eval_pipeline(
                source, canvases=CANVASES, batch_size=8, process_index=p, process_count=2
            )
        )
    ]
    assert {r.shape for r in records} == {(4,)}
    assert sorted(np.concatenate(records)) == [-1] * 4 + list(range(12))


def test_cut_objects_are_counted_and_ignored_ones_go_first():
    source = make_source(SIZES[:3])
    assert pipeline.max_object_count(source) == 3
    assert pipeline.count_cut(source, 2) == 1 and pipeline.count_cut(source, 3) == 0
    hard = source.annotations[2]._replace(difficult=np.array([True, False, False]))
    source = Source("hard", source.classes, (hard,), lambda i: np.zeros((32, 32, 3), np.uint8))
    batch = pipeline.eval_pipeline(source, canvases=CANVASES, batch_size=1, max_objects=2)[0]
    np.testing.assert_array_equal(batch.instances.boxes[0], hard.boxes[1:])
    assert not batch.instances.difficult.any()


def test_rates_decide_how_often():
    """Twelve square pictures: the last four three times, the rest not or once."""
    source = make_source(SIZES[:12])
    rates = np.array([0.0] * 4 + [1.0] * 4 + [3.0] * 4)
    batches = make(source, batch_size=8, rates=rates)
    for epoch in range(3):
        records = np.concatenate([batches[2 * epoch + i].records for i in range(2)])
        assert np.bincount(records, minlength=12).tolist() == rates.tolist()
    assert not np.array_equal(batches[0].records, batches[2].records)


def test_canvases_without_drawn_images_are_left_out():
    rates = np.array([1.0] * 12 + [0.0] * 6)
    batches = make(rates=rates)
    assert {batches[i].images.pixels.shape[1:3] for i in range(4)} == {(32, 32)}
    rates[12:] = 4.0
    batches = make(rates=rates)
    shapes = [batches[i].images.pixels.shape[1:3] for i in range(6)]
    assert shapes.count((24, 48)) == 4


def test_sets_mixed():
    one, two = make_source(SIZES[:12]), make_source(SIZES[:3])
    source, rates = epochs.mix([one, two], [1.0, 1.0])
    batches = make(source, batch_size=5, rates=rates)
    records = np.concatenate([batches[i].records for i in range(6)])
    assert (records >= 12).sum() == 15


def test_rows_for_composed_pictures():
    source = make_source()  # 0, 1 or 3 objects.
    both = Augmentation(mosaic=0.5, copy_paste=0.5)
    assert pipeline.max_object_count(source, augmentation=both) == 15
    assert pipeline.max_object_count(source, augmentation=Augmentation(copy_paste=0.1)) == 6
    assert pipeline.count_cut(source, 15, augmentation=both) == 0
    assert 0 < pipeline.count_cut(source, 5, augmentation=both) < 12 * 18
    assert pipeline.count_cut(source, 5) == 0
    always = Augmentation(mosaic=1.0)
    four_of_three = make_source(counts=(3,))
    assert pipeline.count_cut(four_of_three, 10, augmentation=always) == 2 * 18


def test_only_images_without_objects():
    batch = make(make_source(SIZES[:2], counts=(0,)))[0]
    assert batch.instances.boxes.shape == (4, 1, 4) and not batch.instances.valid.any()


def test_decoded_pictures_are_kept_while_there_is_room():
    reads: list[int] = []
    room = 3 * 32 * 32 * 3
    batches = make(make_source(SIZES[:6], reads=reads), batch_size=6, cache_bytes=room)
    for epoch in range(3):
        assert sorted(batches[epoch].records) == list(range(6))
    assert len(reads) == 6 + 3 + 3


def test_choose_canvas():
    canvases = ((320, 416), (416, 320), (384, 384))
    assert pipeline.choose_canvas((480, 640), canvases) == (320, 416)
    assert pipeline.choose_canvas((640, 480), canvases) == (416, 320)
    assert pipeline.choose_canvas((500, 500), canvases) == (384, 384)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3, "process_count": 2},
        {"process_index": 1},
        {"batch_size": 0},
        {"canvases": ()},
        {"source": make_source([])},
        {"rates": np.ones(3)},
        {"rates": np.zeros(18)},
        {"rates": np.full(18, np.nan)},
        {"mask_side": 14},
        {"with_keypoints": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_misuse(options):
    with pytest.raises(ValueError, match=r"got|no images"):
        make(**options)
    with pytest.raises(ValueError, match="start, threads"):
        next(pipeline.iterate(make(), -1))


def test_pasted_objects_need_masks():
    with pytest.raises(
        ValueError, match=r"copy_paste .* cuts objects out by their masks: test has none"
    ):
        pipeline.train_pipeline(
            make_source(),
            canvases=CANVASES,
            batch_size=2,
            seed=0,
            augmentation=Augmentation(copy_paste=0.5),
        )
