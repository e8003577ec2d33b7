"""Time, compile time and memory of every part of Faster R-CNN, in one table.

Run       python benchmarks/overview.py
          python benchmarks/overview.py --only roi_align nms --repeats 20
Columns   compile: seconds until the first call could start; median: of the repeats, milliseconds;
          memory: what the compiled program needs beside its arguments and results, megabytes.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.data import pipeline, shapes
from jaxdet.data.augment import Augmentation
from jaxdet.geometry import iou as iou_ops
from jaxdet.geometry import nms
from jaxdet.regions import roi_align, roi_pool
from jaxdet.structures import Batch, Images, Instances
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.targets import matching
from jaxdet.training import parallel, recipes, state, steps

Case = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Rows whose name contains one of these words; all if none."""
    repeats: int = 7
    """Timed calls of each row, after one that is not timed."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where generated data sets are kept."""


def boxes_in(rng: np.random.Generator, n: int, *, height: int, width: int) -> jax.Array:
    """Boxes of 16 to 300 px, clustered around some fifty centres as proposals are."""
    centers = rng.uniform((0, 0), (width, height), (50, 2))[rng.integers(0, 50, n)]
    centers += rng.normal(0, 12, (n, 2))
    sides = np.exp(rng.uniform(np.log(16), np.log(300), (50, 1)))[rng.integers(0, 50, n)]
    sides = sides * rng.uniform(0.8, 1.25, (n, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    return jnp.asarray(np.clip(boxes, 0, (width, height, width, height)), jnp.float32)


def operator_cases(rng: np.random.Generator) -> dict[str, Case]:
    """RoIAlign, RoIPool, NMS and matching at the sizes of an 800 x 1216 picture."""
    features = jnp.asarray(rng.standard_normal((200, 304, 256)), jnp.float32)
    rois = boxes_in(rng, 1000, height=800, width=1216)
    align = functools.partial(roi_align.roi_align, output_size=7, spatial_scale=0.25)
    pool = functools.partial(roi_pool.roi_pool, output_size=7, spatial_scale=0.25)

    def gradient(op: Callable[..., jax.Array], argnums: Any = 0) -> Callable[..., Any]:
        return jax.value_and_grad(lambda *args: jnp.sum(op(*args) ** 2), argnums=argnums)

    many = boxes_in(rng, 5000, height=800, width=1216)
    scores = jnp.asarray(rng.uniform(size=5000), jnp.float32)
    groups = jnp.asarray(rng.integers(0, 5, 5000), jnp.int32)
    suppress = functools.partial(nms.batched_nms, iou_threshold=0.7, max_outputs=1000)
    anchors = boxes_in(rng, 240_000, height=800, width=1216)
    objects = boxes_in(rng, 20, height=800, width=1216)

    def match(objects: jax.Array, anchors: jax.Array) -> matching.Matches:
        return matching.match(
            iou_ops.pairwise_iou(objects, anchors),
            jnp.ones(len(objects), bool),
            positive_iou=0.7,
            negative_iou=0.3,
            keep_best=True,
        )

    valid = jnp.ones(5000, bool)
    return {
        "roi_align, 1000 RoIs, 256 ch, 7x7": (align, (features, rois)),
        "roi_align, + gradient of features": (gradient(align), (features, rois)),
        "roi_align, + gradient of boxes": (gradient(align, (0, 1)), (features, rois)),
        "roi_pool, 1000 RoIs, 256 ch, 7x7": (pool, (features, rois)),
        "nms, 5000 boxes, 5 levels, keep 1000": (suppress, (many, scores, groups, valid)),
        "matching, 240000 anchors, 20 objects": (match, (objects, anchors)),
        "iou, 5000 x 100": (iou_ops.pairwise_iou, (many, many[:100])),
    }


def random_batch(rng: np.random.Generator, size: int, height: int, width: int) -> Batch:
    """Noise with eight objects a picture."""
    pixels = rng.integers(0, 256, (size, height, width, 3), dtype=np.uint8)
    boxes = np.stack([boxes_in(rng, 8, height=height, width=width) for _ in range(size)])
    yes, no = np.ones((size, 8), bool), np.zeros((size, 8), bool)
    sizes = np.full((size, 2), (height, width), np.int32)
    labels = rng.integers(1, 9, (size, 8)).astype(np.int32)
    numbers = np.arange(size, dtype=np.int32)
    return Batch(Images(pixels, sizes), Instances(boxes, labels, yes, no, no), numbers, numbers)


def system_cases(rng: np.random.Generator) -> dict[str, Case]:
    """`detect` and the training step: ResNet-50-FPN on 480 x 640."""
    model = architectures.build(90)
    batch = jax.tree.map(jnp.asarray, random_batch(rng, 1, 480, 640))
    variables = jax.jit(model.init)(jax.random.key(0), batch.images)
    tx = optax.sgd(0.01, momentum=0.9)
    now = state.init_state(jax.random.key(0), variables, tx)
    step = functools.partial(
        steps.train_step, loss_fn=functools.partial(faster_rcnn.loss, model), tx=tx
    )
    two = jax.tree.map(jnp.asarray, random_batch(rng, 2, 480, 640))
    return {
        "detect, ResNet-50-FPN, 1 x 480 x 640": (
            functools.partial(faster_rcnn.detect, model),
            (variables, batch.images),
        ),
        "train step, ResNet-50-FPN, 2 x 480 x 640": (step, (now, two)),
    }


def measure(case: Case, *, repeats: int, options: Any) -> tuple[float, float, float]:
    """Seconds to compile, median milliseconds, megabytes of scratch memory."""
    function, arguments = case
    begun = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile(options)
    compile_seconds = time.perf_counter() - begun
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes if memory else float("nan")
    return compile_seconds, 1e3 * float(np.median(seconds)), scratch / 1e6


def pipeline_speeds(data_dir: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Images a second of the input pipeline alone, pictures cached after the first epoch."""
    source = shapes.load("train", data_dir=data_dir)
    varied = Augmentation(vertical_flip=0.5, brightness=0.2, contrast=0.2)
    for name, augmentation in (("flip", Augmentation()), ("flip, colour", varied)):
        dataset = pipeline.train_pipeline(
            source, canvases=((128, 128),), batch_size=16, seed=0, augmentation=augmentation
        )
        batches = pipeline.iterate(dataset, threads=1)
        epoch = len(source) // 16
        for _ in range(epoch):
            next(batches)
        begun = time.perf_counter()
        for _ in range(epoch):
            next(batches)
        yield f"pipeline, 128 x 128, {name}", 16 * epoch / (time.perf_counter() - begun)
        batches.close()  # type: ignore[attr-defined]


def main(config: Config) -> None:
    """Measures and prints."""

    def wanted(name: str) -> bool:
        return not config.only or any(word in name for word in config.only)

    rng = np.random.default_rng(0)
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.platform} {device.device_kind}, {jax.device_count()}")
    print(f"{'':44}{'compile s':>10}{'median ms':>11}{'memory MB':>11}")
    for make in (operator_cases, system_cases):
        cases = {name: case for name, case in make(rng).items() if wanted(name)}
        for name, case in cases.items():
            options = parallel.compiler_options([device]) if name.startswith("train") else {}
            compiling, median, memory = measure(case, repeats=config.repeats, options=options)
            print(f"{name:44}{compiling:10.2f}{median:11.2f}{memory:11.1f}", flush=True)
    if wanted("pipeline"):
        for name, speed in pipeline_speeds(config.data_dir):
            print(f"{name:44}{speed:21.0f} images/s", flush=True)


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
