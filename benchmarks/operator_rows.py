"""The rows of `vs_torchvision.py` that are operators: inputs, and the call in each library."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torchvision import ops
from torchvision.models.detection import _utils, roi_heads

from jaxdet.geometry import iou, keypoints, masks, nms, rotated
from jaxdet.losses import boxes as box_losses
from jaxdet.losses import classification
from jaxdet.regions import adaptive_roi_align, position_sensitive, roi_align, roi_pool
from jaxdet.targets import matching

HEIGHT, WIDTH = 800, 1216  # Of the picture; features are at stride 4.


class Row(NamedTuple):
    """One computation in both libraries."""

    name: str
    ours: Callable[..., Any]  # Of the arguments; compiled here.
    arguments: tuple[Any, ...]  # Trees of NumPy arrays.
    theirs: Callable[[], Any]  # Their arguments are torch tensors already.
    to_ours: Callable[[Any], Any] = lambda result: result  # Their result in our layout.
    compared: Callable[[Any], Any] = lambda result: result  # What of our result is theirs.
    carries: bool = False  # The first argument is used up; the first result takes its place.


def uniform_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Boxes all over the picture, sides of 16 to 400 px, few of which overlap much."""
    sides = np.exp(rng.uniform(np.log(16), np.log(400), (n, 2)))
    low = rng.uniform(size=(n, 2)) * (np.array([[WIDTH, HEIGHT]]) - sides)
    return np.hstack([low, low + sides]).astype(np.float32)


def clustered_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Boxes about sixty objects, as a detector gives them."""
    boxes = uniform_boxes(rng, 60)[rng.integers(0, 60, n)]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + (rng.normal(0, 0.08, (n, 4)) * sides).astype(np.float32)


def channels_last(result: Any) -> Any:
    """Pooled features (or a tuple with them first) with the channels at the end."""
    if isinstance(result, tuple):
        return tuple(channels_last(part) for part in result)
    return np.moveaxis(result, 1, -1)


def with_gradient(operator: Callable[..., Any], cotangent: Any) -> Callable[..., Any]:
    """Returns the result and the gradient of the first argument; torch."""

    def run(first: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        first = first.detach().requires_grad_()
        result = operator(first, *rest)
        result.backward(cotangent)
        return result.detach(), first.grad  # type: ignore[return-value]

    return run


def pulled_back(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the result and the gradient of the first argument; JAX, cotangent last."""

    def run(first: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        result, pull = jax.vjp(lambda x: operator(x, *rest[:-1]), first)
        return result, pull(rest[-1])[0]

    return run


def region_rows(rng: np.random.Generator) -> Iterator[Row]:
    """1000 boxes on a map of 200 x 304 with 256 channels."""
    features = rng.standard_normal((HEIGHT // 4, WIDTH // 4, 256)).astype(np.float32)
    boxes = uniform_boxes(rng, 1000)
    cotangent = np.ones((1000, 7, 7, 256), np.float32)
    maps = torch.from_numpy(np.ascontiguousarray(features.transpose(2, 0, 1)[None]))
    rois, ones = [torch.from_numpy(boxes)], torch.ones(1000, 256, 7, 7)

    pairs = {
        "roi_align": (
            functools.partial(roi_align.roi_align, output_size=7, spatial_scale=0.25),
            lambda x: ops.roi_align(x, rois, 7, 0.25, 2, False),
        ),
        "roi_pool": (
            functools.partial(roi_pool.roi_pool, output_size=7, spatial_scale=0.25),
            lambda x: ops.roi_pool(x, rois, 7, 0.25),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        forward = functools.partial(theirs, maps)
        yield Row(f"{name}, 1000 RoIs, 7x7", ours, (features, boxes), forward, channels_last)
        both = functools.partial(with_gradient(theirs, ones), maps)
        yield Row(
            f"{name}, with gradient",
            pulled_back(ours),
            (features, boxes, cotangent),
            both,
            channels_last,
        )
    yield Row(
        "adaptive roi_align, 1000 RoIs, 7x7",
        functools.partial(adaptive_roi_align.adaptive_roi_align, output_size=7, spatial_scale=0.25),
        (features, boxes),
        lambda: ops.roi_align(maps, rois, 7, 0.25, -1, False),
        channels_last,
    )
    scores = rng.standard_normal((HEIGHT // 16, WIDTH // 16, 21 * 49)).astype(np.float32)
    score_maps = torch.from_numpy(np.ascontiguousarray(scores.transpose(2, 0, 1)[None]))
    few = boxes[:300]
    few_rois = [torch.from_numpy(few)]
    for name, theirs in (
        ("ps_roi_align", lambda: ops.ps_roi_align(score_maps, few_rois, 7, 1 / 16, 2)),
        ("ps_roi_pool", lambda: ops.ps_roi_pool(score_maps, few_rois, 7, 1 / 16)),
    ):
        ours = getattr(position_sensitive, name)
        yield Row(
            f"{name}, 300 RoIs, 7x7, 21 classes",
            functools.partial(ours, output_size=7, spatial_scale=1 / 16),
            (scores, few),
            theirs,
            channels_last,
        )
    yield Row(
        "roi_align, 1000 RoIs, 14x14",
        functools.partial(roi_align.roi_align, output_size=14, spatial_scale=0.25),
        (features, boxes),
        lambda: ops.roi_align(maps, rois, 14, 0.25, 2, False),
        channels_last,
    )


def suppression_rows(rng: np.random.Generator) -> Iterator[Row]:
    """5000 boxes in five levels, all kept that torchvision keeps, then the best 1000."""
    n = 5000
    scores = (rng.permutation(n).astype(np.float32) + 0.5) / n
    groups, valid = rng.integers(0, 5, n).astype(np.int32), np.ones(n, bool)
    for kind, boxes in (("clustered", clustered_boxes(rng, n)), ("spread", uniform_boxes(rng, n))):
        theirs = tuple(map(torch.from_numpy, (boxes, scores, groups)))
        kept = functools.partial(ops.batched_nms, *theirs, 0.7)
        for k in (n, 1000):

            def ours(*arrays: jax.Array, k: int = k) -> jax.Array:
                kept = nms.batched_nms(*arrays, iou_threshold=0.7, max_outputs=k)
                return jnp.where(kept.valid, kept.indices, -1)

            def first(indices: np.ndarray, k: int = k) -> np.ndarray:
                return np.pad(indices[:k], (0, max(0, k - len(indices))), constant_values=-1)

            arrays = (boxes, scores, groups, valid)
            yield Row(f"nms, {n} {kind} boxes, keep {k}", ours, arrays, kept, first)


def overlap_rows(rng: np.random.Generator) -> Iterator[Row]:
    """5000 boxes against 100."""
    boxes = uniform_boxes(rng, 5000)
    tensors = torch.from_numpy(boxes), torch.from_numpy(boxes[:100])
    pairs = {
        "iou": (iou.pairwise_iou, ops.box_iou),
        "giou": (iou.pairwise_giou, ops.generalized_box_iou),
        "ciou": (iou.pairwise_ciou, ops.complete_box_iou),
    }
    for name, (ours, theirs) in pairs.items():
        yield Row(
            f"{name}, 5000 x 100", ours, (boxes, boxes[:100]), functools.partial(theirs, *tensors)
        )

    turned = np.hstack([boxes[:1000, :2], boxes[:1000, 2:] - boxes[:1000, :2]]).astype(np.float32)
    turned = np.hstack([turned, rng.uniform(-90, 90, (1000, 1)).astype(np.float32)])
    tensor = torch.from_numpy(turned)
    yield Row(
        "rotated iou, 1000 x 1000",
        rotated.pairwise_iou,
        (turned, turned),
        lambda: ops.box_iou(tensor, tensor, fmt="cxcywhr"),
    )
    anchors = uniform_boxes(rng, 240_000)
    objects = uniform_boxes(rng, 20)
    anchors_t, objects_t = torch.from_numpy(anchors), torch.from_numpy(objects)

    def match(objects: jax.Array, anchors: jax.Array) -> jax.Array:
        found = matching.match_boxes(
            objects,
            jnp.ones(len(objects), bool),
            anchors,
            positive_iou=0.7,
            negative_iou=0.3,
            keep_best=True,
        )
        return jnp.where(found.positive, found.index, jnp.where(found.negative, -1, -2))

    matcher = _utils.Matcher(0.7, 0.3, True)
    yield Row(
        "matching, 240000 anchors, 20 objects",
        match,
        (objects, anchors),
        lambda: matcher(ops.box_iou(objects_t, anchors_t)),
    )


def loss_rows(rng: np.random.Generator) -> Iterator[Row]:
    """Losses with their gradients."""
    boxes = uniform_boxes(rng, 100_000)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    targets = boxes + (rng.normal(0, 0.05, boxes.shape) * sides).astype(np.float32)
    ones, targets_t = torch.ones(len(boxes)), torch.from_numpy(targets)
    yield Row(
        "ciou loss of 100000, with gradient",
        pulled_back(box_losses.ciou_loss),
        (boxes, targets, np.ones(len(boxes), np.float32)),
        functools.partial(
            with_gradient(ops.complete_box_iou_loss, ones), torch.from_numpy(boxes), targets_t
        ),
    )
    logits = rng.normal(0, 3, (60_000, 80)).astype(np.float32)
    yes = rng.uniform(size=logits.shape) < 0.01
    cotangent, yes_t = np.ones_like(logits), torch.from_numpy(yes).float()
    yield Row(
        "focal loss of 60000 x 80, with gradient",
        pulled_back(classification.sigmoid_focal_loss),
        (logits, yes, cotangent),
        functools.partial(
            with_gradient(ops.sigmoid_focal_loss, torch.from_numpy(cotangent)),
            torch.from_numpy(logits),
            yes_t,
        ),
    )


def mask_rows(rng: np.random.Generator) -> Iterator[Row]:
    """What Mask and Keypoint R-CNN do with their maps."""
    boxes = uniform_boxes(rng, 100)
    probabilities = rng.uniform(size=(100, 28, 28)).astype(np.float32)
    boxes_t, masks_t = torch.from_numpy(boxes), torch.from_numpy(probabilities[:, None])
    yield Row(
        "paste 100 masks into 800 x 1216",
        functools.partial(masks.paste_masks, size=(HEIGHT, WIDTH)),
        (probabilities, boxes),
        lambda: roi_heads.paste_masks_in_image(masks_t, boxes_t, (HEIGHT, WIDTH)),
        lambda result: result[:, 0],
    )
    maps = rng.normal(size=(100, 56, 56, 17)).astype(np.float32)
    maps_t = torch.from_numpy(np.ascontiguousarray(maps.transpose(0, 3, 1, 2)))
    yield Row(
        "keypoints of 100 boxes, 17 maps of 56 x 56",
        keypoints.heatmaps_to_keypoints,
        (maps, boxes),
        lambda: roi_heads.heatmaps_to_keypoints(maps_t, boxes_t),
    )


ROWS = (region_rows, suppression_rows, overlap_rows, loss_rows, mask_rows)
