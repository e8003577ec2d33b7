"""Small variants of Faster R-CNN, and a batch, that the tests of systems share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.proposals.rpn import ProposalOptions, RPNTargets
from jaxdet.structures import Batch, Images, Instances
from jaxdet.systems.architectures import Architecture
from jaxdet.systems.faster_rcnn import DetectOptions, LossOptions

CANVAS = (64, 64)
K = 3
PYRAMID = Architecture(
    depth=18,
    width=16,
    norm="batch",
    n_frozen=0,
    n_stages=2,
    pyramid_features=16,
    anchor_sizes=((16.0,), (32.0,)),
    aspect_ratios=(1.0,),
    canonical_size=48.0,
    head_features=32,
    aligned=True,
)
SINGLE_LEVEL = dataclasses.replace(
    PYRAMID, norm="group", n_stages=1, pyramid=False, anchor_sizes=((12.0, 24.0, 32.0),)
)
# One stage and an extra level.
AGNOSTIC = dataclasses.replace(PYRAMID, norm="frozen", n_stages=1, class_agnostic=True)
# As torchvision's second version.
NORMED = dataclasses.replace(PYRAMID, pyramid_norm=True, rpn_convs=2, head_convs=2)
VARIANTS = {
    "pyramid, batch norm": PYRAMID,
    "single level, group norm": SINGLE_LEVEL,
    "class-agnostic, frozen norm": AGNOSTIC,
    "norms in pyramid and head": NORMED,
}
LOSS = LossOptions(
    anchors=RPNTargets(sample_size=32),
    proposals=ProposalOptions(pre_nms=32, post_nms=16),
    sample_size=16,
)
DETECT = DetectOptions(
    score_threshold=0.0,
    max_detections=8,
    max_candidates=32,
    proposals=ProposalOptions(pre_nms=32, post_nms=16),
)


# (x, y, side) of the squares of each picture, and which of them are crowds: (picture, square).
SQUARES = ([(4, 4, 20), (30, 34, 26)], [(8, 30, 20), (36, 6, 18)], [], [(6, 10, 20)])
CROWDS = ((1, 0),)


def make_batch(*, n_rows=4, squares=SQUARES, crowds=CROWDS) -> Batch:
    """Four pictures of squares whose grey is their class, the last one smaller than the canvas."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (4, *CANVAS, 3)).astype(np.uint8)
    boxes = np.zeros((4, n_rows, 4), np.float32)
    labels = np.zeros((4, n_rows), np.int32)
    crowd = np.zeros((4, n_rows), bool)
    for i, picture in enumerate(squares):
        for j, (x, y, side) in enumerate(picture):
            labels[i, j] = (i + j) % K + 1
            boxes[i, j] = (x, y, x + side, y + side)
            pixels[i, y : y + side, x : x + side] = 80 * labels[i, j]
    for place in crowds:
        crowd[place] = True
    sizes = np.array([CANVAS, CANVAS, CANVAS, (40, 48)], np.int32)
    valid = labels > 0
    return Batch(
        Images(jnp.asarray(pixels), jnp.asarray(sizes)),
        Instances(
            *map(jnp.asarray, (boxes, labels, valid, crowd, np.zeros_like(crowd))),
        ),
        records=jnp.arange(4, dtype=jnp.int32),
        positions=jnp.arange(4, dtype=jnp.int32),
        keys=jax.random.split(jax.random.key(0), 4),
    )


def drawn(shapes, *, seed=0):
    """Variables at random: layers that start at zero would hide what is before them."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        start = 1 if path[-1].key in ("scale", "var") else 0
        return start + rng.uniform(0, 0.1, leaf.shape)

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)
