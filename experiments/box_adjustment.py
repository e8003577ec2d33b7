"""Iterative box adjustment: boxes near objects are moved until they settle.

Source    Gidaris & Komodakis 2015 (arXiv:1505.01749v3), section 5; Cai & Vasconcelos 2018
          (arXiv:1712.00726v1), section 3.1.
Expected  mean IoU on the test split after 0, 1, 2, 3, 5 and 10 steps: 0.460, 0.633, 0.700, 0.718,
          0.725, 0.725; IoU >= 0.5 with 35 % of the boxes at first and 87 % in the end; 5.4 minutes
          on two cores.
Run       python experiments/box_adjustment.py
          python experiments/box_adjustment.py folder --data PATH
Check     python experiments/box_adjustment.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/,
          curves.png, results.json (mean IoU by number of steps), adjusted.png (truth;
          starts, dashed, and ends); it starts from true boxes, so predict.py and evaluate.py do
          not read its checkpoints
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxdet import feeds
from jaxdet.data import selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.selection import Selection
from jaxdet.features.networks import Network
from jaxdet.geometry import iou as iou_ops
from jaxdet.metrics.localization import MIN_IOU
from jaxdet.structures import Batch
from jaxdet.systems import box_adjuster
from jaxdet.systems.box_adjuster import Architecture, BoxAdjuster, LossOptions
from jaxdet.training import (
    checkpoints,
    fit,
    logging,
    parallel,
    processes,
    recipes,
    state,
    steps,
)
from jaxdet.viz import draw, figures


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection()
    canvases: tuple[tuple[int, int], ...] = ((128, 128),)
    """(height, width) of the arrays that pictures are resized onto, multiples of 8."""
    augmentation: Augmentation = Augmentation(vertical_flip=0.5, brightness=0.2, contrast=0.2)
    architecture: Architecture = Architecture()
    loss: LossOptions = LossOptions()
    shift: float = 0.4
    """How far from objects boxes start that are evaluated: largest shift, in sides."""
    stretch: float = 0.5
    """Likewise: largest change of a side's logarithm."""
    counts: tuple[int, ...] = (0, 1, 2, 3, 5, 10)
    """Steps of adjustment that are evaluated."""
    training: OmitArgPrefixes[fit.Options] = fit.Options(
        batch_size=16,
        steps=800,
        optimizer="adamw",
        learning_rate=1.5e-3,
        weight_decay=0.05,
        warmup_steps=100,
        ema_decay=0.99,
        evaluate_every=400,
    )
    out: pathlib.Path = pathlib.Path("runs/box_adjustment")
    """Folder of the run; one with checkpoints is gone on with."""


SMOKE = Config(
    selection=Selection(scenes="tiny"),
    architecture=Architecture(Network(width=16, n_stages=2), features=16),
    counts=(0, 1, 3),
    training=fit.Options(
        batch_size=4, steps=4, warmup_steps=1, evaluate_every=2, checkpoint_every=2, log_every=1
    ),
    out=pathlib.Path("runs/box_adjustment_smoke"),
)
FOLDER = Config(
    selection=Selection(data=""),
    canvases=((320, 416), (416, 320)),
    augmentation=Augmentation(scale=(0.8, 1.25), brightness=0.2, contrast=0.2, saturation=0.2),
    training=dataclasses.replace(Config.training, steps=1600, checkpoint_every=400),
    out=pathlib.Path("runs/box_adjustment_folder"),
)
CONFIGS = {
    "shapes": ("Generated scenes.", Config()),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures (--data PATH).", FOLDER),
}
# What may differ when a run is gone on with.
FREE = (*selection.FREE, "out")


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates, writes; returns the mean IoU by number of steps on the test split."""
    log = logging.MetricsLog(config.out)
    begun = time.perf_counter() - logging.seconds(config.out)  # Earlier starts count, too.
    chosen, options = config.selection, config.training
    train, rates, val = selection.open_parts(chosen)
    print(sources.describe(train), sources.describe(val), sep="\n", flush=True)
    feed = feeds.training(
        train,
        selection=chosen,
        options=options,
        canvases=config.canvases,
        augmentation=config.augmentation,
        rates=rates,
    )
    model = box_adjuster.build(
        config.architecture,
        axis_name=parallel.AXIS,
        dtype=jnp.bfloat16 if options.bfloat16 else jnp.float32,
    )
    variables = state.initial_variables(
        jax.random.key(options.seed), model, canvas=config.canvases[0]
    )
    measure = functools.partial(measure_steps, config, compile_sums(config, model))
    plain = functools.partial(
        feeds.evaluation, canvases=config.canvases, batch_size=options.batch_size
    )
    val_batches = plain(val)

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        del step
        return measure(variables, val_batches())

    fit.fit(
        variables,
        loss_fn=functools.partial(box_adjuster.loss, model, options=config.loss),
        feed=feed,
        evaluate=evaluate,
        best_metric=f"iou_{config.counts[-1]}",
        options=options,
        log=log,
        config=config,
        metadata={
            "system": "box_adjuster",
            "architecture": dataclasses.asdict(config.architecture),
            "classes": train.classes,
        },
        free=FREE,
    )
    variables, _ = processes.on_first(lambda: checkpoints.load_variables(config.out))
    test = selection.open_split(chosen, chosen.test_split, classes=train.classes)
    print(sources.describe(test), flush=True)
    test_batches = plain(test)
    metrics = measure(parallel.replicate(variables), test_batches())
    print("steps  mean IoU  IoU >= 0.5")
    for n in config.counts:
        print(f"{n:5}  {metrics[f'iou_{n}']:8.3f}  {metrics[f'right_{n}']:10.3f}")
    draw_adjusted(config, model, variables, next(test_batches()), train.classes)
    figures.training_curves(config.out / "curves.png", logging.read_rows(config.out))
    logging.write_results(
        config.out / "results.json", metrics, pictures=test.name, begun=begun, seed=options.seed
    )
    return metrics


def starts(key: jax.Array, config: Config, batch: Batch) -> jax.Array:
    """Boxes near the objects; the same for a key, whichever batch a picture is in."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.records)
    near = functools.partial(
        box_adjuster.jitter, n_candidates=1, shift=config.shift, stretch=config.stretch
    )
    return jax.vmap(near)(keys, batch.instances.boxes)[:, :, 0]


def compile_sums(config: Config, model: BoxAdjuster) -> Callable[..., steps.Sums]:
    """Mean IoU and share of right boxes, as (sum, count) over all devices, by count of steps."""

    def sums(key: jax.Array, variables: Any, batch: Batch) -> steps.Sums:
        near, truth = starts(key, config, batch), batch.instances
        counts = truth.objects & (batch.records >= 0)[:, None]
        total = jnp.sum(counts, dtype=jnp.float32)
        found, boxes, done = {}, near, 0
        for n in sorted(config.counts):  # What has settled stays, so steps can be taken in parts.
            moved = box_adjuster.adjust(model, variables, batch.images, boxes, max_steps=n - done)
            boxes, done = moved.boxes, n
            overlaps = jnp.where(counts, iou_ops.iou(boxes, truth.boxes), 0)
            found[f"iou_{n}"] = (jnp.sum(overlaps), total)
            found[f"right_{n}"] = (jnp.sum(overlaps >= MIN_IOU, dtype=jnp.float32), total)
        return jax.lax.psum(found, parallel.AXIS)

    return parallel.parallel_eval_step(sums)


def measure_steps(
    config: Config,
    sums: Callable[..., steps.Sums],
    variables: dict[str, Any],
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Means of `compile_sums` over batches."""
    key = jax.random.key(config.training.seed)
    parts = (jax.device_get(sums(key, variables, batch)) for batch in batches)
    means = steps.means(functools.reduce(steps.merge, parts, {}))
    return {name: float(value) for name, value in means.items()}


def draw_adjusted(
    config: Config, model: BoxAdjuster, variables: Any, batch: Batch, classes: tuple[str, ...]
) -> None:
    """The objects; beside them where boxes started, dashed, and settled; of a few pictures."""
    near = starts(jax.random.key(config.training.seed), config, batch)
    moved = jax.jit(functools.partial(box_adjuster.adjust, model))(variables, batch.images, near)
    pictures = []
    for i in np.flatnonzero(batch.records >= 0)[:8]:
        kept = np.array(batch.instances.valid[i])
        boxes, labels = (
            np.concatenate([np.array(a[i])[kept], np.array(b[i])[kept]])
            for a, b in ((near, moved.boxes), (batch.instances.labels,) * 2)
        )
        begun = np.arange(len(boxes)) < kept.sum()
        pixels = np.array(batch.images.pixels[i])
        truth = np.array(batch.instances.boxes[i])[kept]
        pictures.append(
            draw.side_by_side(
                draw.draw_boxes(pixels, truth, labels[begun], classes),
                draw.draw_boxes(pixels, boxes, labels, classes, ignored=begun),
                titles=("ground truth", "from dashed to solid"),
            )
        )
    draw.save_png(config.out / "adjusted.png", draw.contact_sheet(pictures, 2))


if __name__ == "__main__":
    recipes.run_experiment(main, CONFIGS, default="shapes", description=__doc__ or "")
