import pickle

import numpy as np
from test_transforms import annotate, patch_scene, rectangle

from jaxdet.data import examples, segments
from jaxdet.data.augment import Augmentation
from jaxdet.data.examples import Rows
from jaxdet.data.records import Bitmap, Source

ALL_ROWS = Rows(n_objects=3, mask_side=14, n_keypoints=2)


class Scenes:
    """Reads the scenes it was given."""

    def __init__(self, images):
        self.images, self.reads = images, []

    def __call__(self, index):
        self.reads.append(index)
        return self.images[index]


def make_source(rng, n=3):
    images, annotations = [], []
    for _ in range(n):
        image, boxes = patch_scene(rng)
        x1, y1, x2, y2 = boxes[0]
        boxes = np.concatenate([boxes, [[0, 0, 70, 50]]]).astype(np.float32)
        outlines = (rectangle((x1, y1, x2, (y1 + y2) / 2)), None)
        keypoints = np.zeros((2, 2, 3), np.float32)
        keypoints[0] = [[x1, y1, 2], [x2 - 1, y1, 1]]
        images.append(image)
        annotations.append(
            annotate(
                image, boxes, segments=outlines, keypoints=keypoints, crowd=np.array([0, 1], bool)
            )
        )
    return Source(
        "scenes",
        ("patch",),
        tuple(annotations),
        Scenes(images),
        keypoint_names=("left", "right"),
        keypoint_pairs=((0, 1),),
    )


def test_masks_and_keypoints_by_hand(rng):
    source = make_source(rng)
    got = examples.plain_example(1, source=source, canvas=(100, 140), rows=ALL_ROWS).instances
    want = source.annotations[1]
    np.testing.assert_array_equal(got.boxes[:2], 2 * want.boxes)
    np.testing.assert_array_equal(got.keypoints[0], want.keypoints[0] * [2, 2, 1])
    assert got.masks.shape == (3, 14, 14) and got.masks.dtype == bool
    assert got.masks[0, :7].all() and not got.masks[0, 7:].any()  # The upper half is outlined.
    assert not got.masks[1:].any() and not got.keypoints[1:].any()
    assert got.valid.tolist() == [True, True, False]


def test_nothing_unless_asked_for(rng):
    got = examples.plain_example(
        0, source=make_source(rng), canvas=(50, 70), rows=Rows(3)
    ).instances
    assert got.masks is None and got.keypoints is None


def test_masks_of_bitmaps_and_of_a_mirror_image(rng):
    """The mask is that of the picture's box, whatever was done to the picture."""
    image, boxes = patch_scene(rng)
    x1, y1, x2, y2 = boxes[0].astype(int)
    mask = np.zeros((50, 70), bool)
    mask[y1:y2, x1 : (x1 + x2) // 2] = True
    annotation = annotate(image, boxes, segments=(Bitmap(mask, (0, 0)),))
    source = Source("one", ("patch",), (annotation,), Scenes([image]))
    for flip in (0.0, 1.0):
        got = examples.varied_example(
            0,
            rng,
            source=examples.CachedSource(source, 0),
            canvas=(50, 70),
            augmentation=Augmentation(flip),
            rows=Rows(1, mask_side=28),
        ).instances.masks[0]
        want = segments.frame_mask(Bitmap(mask, (0, 0)), boxes[0], 28)
        np.testing.assert_array_equal(got, want[:, ::-1] if flip else want)
        assert 0.4 < got.mean() < 0.6


def test_mirrored_keypoints_change_places(rng):
    source = make_source(rng)
    got = examples.varied_example(
        0,
        rng,
        source=examples.CachedSource(source, 0),
        canvas=(50, 70),
        augmentation=Augmentation(1.0),
        rows=ALL_ROWS,
    ).instances.keypoints[0]
    want = source.annotations[0].keypoints[0][::-1] * [-1, 1, 1] + [70, 0, 0]
    np.testing.assert_allclose(got, want)


def test_rows_keep_fields_together(rng):
    """Ignored objects come last, with their masks and keypoints."""
    source = make_source(rng)
    first = source.annotations[0]
    turned = first._replace(
        boxes=first.boxes[::-1],
        crowd=first.crowd[::-1],
        segments=first.segments[::-1],
        keypoints=first.keypoints[::-1],
    )
    swapped = Source("s", ("patch",), (turned,), source.read, keypoint_names=("left", "right"))
    one, two = (
        examples.plain_example(0, source=s, canvas=(50, 70), rows=ALL_ROWS).instances
        for s in (source, swapped)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cache_is_not_sent_along(rng):
    source = make_source(rng)
    cached = examples.CachedSource(source, 50 * 70 * 3 * 2)
    for index in (0, 1, 2, 0, 1, 2):
        np.testing.assert_array_equal(cached[index][0], source.read.images[index])
    assert source.read.reads == [0, 1, 2, 2]
    assert len(pickle.dumps(cached)) < len(pickle.dumps(source)) + 300
    copy = pickle.loads(pickle.dumps(cached))
    np.testing.assert_array_equal(copy[1][0], cached[1][0])
    assert copy.source.read.reads[-1] == 1


def test_every_picture_can_be_a_partner(rng):
    cached = examples.CachedSource(make_source(rng), 1 << 20)
    drawn = {cached.draw(rng)[0].tobytes() for _ in range(60)}
    assert len(drawn) == 3


def test_stack(rng):
    source = make_source(rng)
    rows = [
        examples.plain_example(index, source=source, canvas=(64, 96), rows=ALL_ROWS)
        for index in (2, -1)
    ]
    batch = examples.stack(rows, canvas=(64, 96), positions=(1, 3))
    assert batch.images.pixels.shape == (2, 64, 96, 3)
    assert batch.images.sizes.tolist() == [[64, 90], [0, 0]]
    np.testing.assert_array_equal(batch.images.pixels[0, :64, :90], rows[0].pixels)
    assert not batch.images.pixels[0, :, 90:].any() and not batch.images.pixels[1].any()
    assert batch.records.tolist() == [2, -1] and batch.positions.tolist() == [1, 3]
    assert batch.instances.masks.shape == (2, 3, 14, 14)
    assert batch.instances.keypoints.shape == (2, 3, 2, 3)
    assert not batch.instances.valid[1].any() and batch.keys is None
