"""Faster R-CNN: trains, evaluates, shows what it found; on generated scenes or on your pictures.

Source    Ren et al. 2015 (arXiv:1506.01497v3); feature pyramids Lin et al. 2017 (arXiv:1612.03144).
Expected  shapes: AP 0.54, AP50 0.75 on the test split, 7 minutes on two CPU cores;
          shapes_long: AP 0.77, AP50 0.94, an hour; folder on BCCD: AP50 0.90 at step 400, 6 min.
Run       python experiments/faster_rcnn.py
          python experiments/faster_rcnn.py folder --data PATH
          python experiments/faster_rcnn.py folder --data PATH --weights fasterrcnn_resnet50_fpn
Check     python experiments/faster_rcnn.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/, pictures/,
          detections.json (a COCO results file), precision_recall.png, curves.png, results.json
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import predictor
from jaxdet.data import epochs, pipeline, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.metrics import coco
from jaxdet.proposals.rpn import ProposalOptions, RPNTargets
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.systems.architectures import Architecture
from jaxdet.systems.faster_rcnn import DetectOptions, LossOptions
from jaxdet.training import checkpoints, logging, loop, parallel, recipes, schedules, state, steps
from jaxdet.viz import draw, figures
from jaxdet.weights import detectors, download
from jaxdet.weights.description import Description, to_metadata


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    data: str = "shapes"
    """`shapes`, or a path: COCO, VOC, YOLO, VIA, CSV, masks, a TFDS folder; or tfds:NAME."""
    format: Literal["coco", "voc", "yolo", "via", "masks", "csv", "tfds"] | None = None
    """Of the data, if what is found by itself is wrong."""
    skip_bad: bool = False
    """Leave out pictures with faults in them or their annotations, in place of stopping."""
    images: pathlib.Path | None = None
    """Folder of the pictures of a JSON or CSV file that lie far from it."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Where generated and TFDS's data sets are kept."""
    scenes: Literal["full", "large", "tiny"] = "full"
    """Which drawing of `shapes`."""
    train_split: str = "train"
    """Part of the data that is trained on."""
    val_split: str = "val"
    """Part that is evaluated during training and that picks the best checkpoint."""
    test_split: str = "test"
    """Part that the final numbers are from; folders without one give `val` again."""
    canvases: tuple[tuple[int, int], ...] = ((128, 128),)
    """(height, width) of the arrays that pictures are resized onto, multiples of 32."""
    max_objects: int | None = None
    """Rows for ground truth of an image; what the data needs if None, several times as many with
    mosaics or pasted objects."""
    augmentation: Augmentation = Augmentation()
    sampling: Literal["each", "repeat_factor", "class_balanced"] = "each"
    """Each picture once an epoch, those of rare classes more often, or classes equally often."""
    repeat_threshold: float = 1e-3
    """Share of the pictures below which a class is rare, for `repeat_factor`."""
    more_data: tuple[str, ...] = ()
    """Further data to train on, of the same classes; each is named as `data` is."""
    data_weights: tuple[float, ...] = ()
    """Shares of `data` and of each of `more_data` in an epoch; by their sizes if none are given."""
    architecture: Architecture = Architecture()
    """That of `weights`, where they are given."""
    weights: str = ""
    """What to begin from, with a new head: a published name, or a file (.pth, .safetensors)."""
    fine_tune_rate: float = 1e-4
    """In place of `learning_rate` where `weights` are given."""
    loss: LossOptions = LossOptions()
    detect: DetectOptions = DetectOptions()
    batch_size: int = 16
    """Images per update, over all devices."""
    steps: int = 1000
    """Updates."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    """At batch size 16; it grows with the batch."""
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    """Not applied to norms and biases."""
    clip_norm: float | None = 10.0
    """Longest gradient; None for no clipping."""
    ema_decay: float = 0.998
    """Of the moving average of parameters that is evaluated; 0 for none."""
    bfloat16: bool = False
    """Whether layers compute in bfloat16; parameters, boxes and losses stay float32."""
    seed: int = 0
    evaluate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 20
    n_pictures: int = 8
    """Pictures drawn at each evaluation."""
    threads: int = 1
    """Of the input pipeline, in each of its processes."""
    workers: int = 0
    """Processes of the input pipeline; 0 is the training process itself."""
    cache_mb: int = 512
    """Memory for decoded pictures, in each process."""
    out: pathlib.Path = pathlib.Path("runs/faster_rcnn")
    """Folder of the run; one with checkpoints is gone on with."""


SMALL = Architecture(
    depth=18,
    width=32,
    norm="batch",
    n_frozen=0,
    first_stage=1,
    pyramid_features=64,
    anchor_sizes=((24.0,), (40.0,), (64.0,)),
    canonical_size=112.0,
    head_features=256,
    aligned=True,
)
SHAPES = Config(
    architecture=SMALL,
    augmentation=Augmentation(vertical_flip=0.5, brightness=0.2, contrast=0.2),
    loss=LossOptions(
        anchors=RPNTargets(sample_size=64),
        proposals=ProposalOptions(pre_nms=200, post_nms=100),
        sample_size=64,
        positive_fraction=0.5,
    ),
    detect=DetectOptions(max_candidates=400, proposals=ProposalOptions(pre_nms=200, post_nms=100)),
    batch_size=8,
    steps=2500,
    optimizer="adamw",
    learning_rate=1.5e-3,
    weight_decay=0.05,
    warmup_steps=200,
    evaluate_every=1250,
    checkpoint_every=500,
    out=pathlib.Path("runs/shapes"),
)
SHAPES_LONG = dataclasses.replace(
    SHAPES,
    scenes="large",
    architecture=dataclasses.replace(
        SMALL,
        width=48,
        first_stage=0,
        anchor_sizes=((20.0,), (32.0,), (50.0,), (72.0,)),
        canonical_size=192.0,
    ),
    batch_size=16,
    learning_rate=1e-3,
    warmup_steps=100,
    steps=8000,
    ema_decay=0.999,
    evaluate_every=2000,
    checkpoint_every=1000,
    out=pathlib.Path("runs/shapes_long"),
)
SMOKE = dataclasses.replace(
    SHAPES,
    scenes="tiny",
    architecture=dataclasses.replace(
        SMALL,
        width=16,
        n_stages=3,
        pyramid_features=16,
        anchor_sizes=((24.0,), (48.0,)),
        head_features=16,
    ),
    loss=LossOptions(
        anchors=RPNTargets(sample_size=16),
        proposals=ProposalOptions(pre_nms=20, post_nms=10),
        sample_size=16,
    ),
    detect=DetectOptions(max_candidates=50, proposals=ProposalOptions(pre_nms=20, post_nms=10)),
    batch_size=4,
    steps=6,
    warmup_steps=2,
    evaluate_every=4,
    checkpoint_every=2,
    log_every=1,
    n_pictures=2,
    out=pathlib.Path("runs/smoke"),
)
FOLDER = dataclasses.replace(
    SHAPES,
    data="",
    canvases=((320, 416), (416, 320)),
    architecture=dataclasses.replace(SMALL, anchor_sizes=((32.0,), (64.0,), (128.0,))),
    augmentation=Augmentation(scale=(0.8, 1.25), brightness=0.2, contrast=0.2, saturation=0.2),
    loss=LossOptions(
        anchors=RPNTargets(sample_size=128),
        proposals=ProposalOptions(pre_nms=300, post_nms=200),
        sample_size=128,
        positive_fraction=0.5,
    ),
    detect=DetectOptions(max_candidates=1000, proposals=ProposalOptions(pre_nms=500, post_nms=300)),
    batch_size=8,
    steps=1600,
    learning_rate=2e-3,
    warmup_steps=100,
    evaluate_every=400,
    checkpoint_every=200,
    out=pathlib.Path("runs/folder"),
)
COCO = Config(
    data="",
    canvases=((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
    architecture=Architecture(norm="batch", n_frozen=0),
    steps=270_000,
    schedule="step",
    warmup_steps=1000,
    bfloat16=True,
    evaluate_every=10_000,
    checkpoint_every=2500,
    threads=8,
    out=pathlib.Path("runs/coco"),
)
VOC07 = dataclasses.replace(
    COCO,
    train_split="trainval",
    val_split="test",
    canvases=((608, 800), (800, 608)),
    augmentation=Augmentation(scale=(0.5, 1.5), brightness=0.2, contrast=0.2, saturation=0.2),
    steps=40_000,
    evaluate_every=5000,
    out=pathlib.Path("runs/voc07"),
)
CONFIGS = {
    "shapes": ("Generated scenes; 8 minutes on two CPU cores.", SHAPES),
    "shapes_long": ("The same scenes; an hour on two CPU cores.", SHAPES_LONG),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures (--data PATH), from random weights.", FOLDER),
    "voc07": ("PASCAL VOC 2007, trainval to test, from random weights; for accelerators.", VOC07),
    "coco": ("COCO 2017 (--data coco), from random weights, 37 epochs; for accelerators.", COCO),
}
# What may differ when a run is gone on with.
FREE = (
    *("data_dir", "steps", "threads", "workers", "cache_mb", "n_pictures", "out"),
    *("evaluate_every", "checkpoint_every", "log_every"),
)


def open_split(config: Config, split: str, *, classes: Sequence[str] | None = None) -> Source:
    """Opens a part of the data and says what it holds."""
    source = sources.open_data(
        config.data,
        split=split,
        data_dir=config.data_dir,
        scenes=config.scenes,
        images=config.images,
        format=config.format,
        skip_bad=config.skip_bad,
        classes=classes,
    )
    print(sources.describe(source), flush=True)
    return source


def open_training_data(config: Config) -> tuple[Source, np.ndarray]:
    """Opens all that is trained on, and says how often each picture comes."""
    train = open_split(config, config.train_split)
    rates = np.ones(len(train))
    if config.more_data:
        others = [dataclasses.replace(config, data=name, images=None) for name in config.more_data]
        parts = [train, *(open_split(c, c.train_split, classes=train.classes) for c in others)]
        weights = config.data_weights or [float(len(part)) for part in parts]
        train, rates = epochs.mix(parts, weights)
    if config.sampling == "repeat_factor":
        rates = rates * epochs.repeat_factors(train, threshold=config.repeat_threshold)
    if config.sampling == "class_balanced":
        rates = rates * epochs.class_balanced_rates(train)
    return train, rates


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Builds the optimizer and its schedule."""
    peak = schedules.scaled(config.learning_rate, config.batch_size)
    make = {"cosine": schedules.cosine_schedule, "step": schedules.step_schedule}[config.schedule]
    schedule = make(peak, steps=config.steps, warmup_steps=config.warmup_steps)
    optimizer = {"sgd": schedules.sgd, "adamw": schedules.adamw}[config.optimizer]
    return optimizer(
        schedule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        trainable=functools.partial(architectures.is_trainable, architecture=config.architecture),
    )


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates, writes; returns the metrics of the test split."""
    begun = time.perf_counter()
    pretrained = None
    if config.weights:
        pretrained = detectors.load(config.weights, progress=download.show_progress)
        config = dataclasses.replace(
            config,
            architecture=pretrained.description.architecture,
            learning_rate=config.fine_tune_rate,
        )
    config.out.mkdir(parents=True, exist_ok=True)

    # Data.
    train, rates = open_training_data(config)
    val = open_split(config, config.val_split, classes=train.classes)
    varied = config.augmentation
    rows = config.max_objects or pipeline.max_object_count(train, augmentation=varied)
    if cut := pipeline.count_cut(train, rows, augmentation=varied):
        about = "up to " if varied.n_pictures > 1 else ""
        print(f"{about}{cut} objects do not fit into {rows} rows an image and are left out.")
    batches = pipeline.train_pipeline(
        train,
        canvases=config.canvases,
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=varied,
        rates=None if (rates == 1).all() else rates,
        max_objects=rows,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache_bytes=config.cache_mb << 20,
    )

    # Model, optimizer, state.
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
    model = architectures.build(
        len(train.classes), config.architecture, axis_name=parallel.AXIS, dtype=dtype
    )
    variables = state.initial_variables(
        jax.random.key(config.seed), model, canvas=config.canvases[0]
    )
    if pretrained is not None:
        variables = detectors.with_new_head(pretrained.variables, variables)
    n_parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    print(
        f"{n_parameters / 1e6:.2f} M parameters, {jax.device_count()} {jax.devices()[0].platform}"
    )
    tx = make_optimizer(config)
    first = parallel.replicate(
        state.init_state(jax.random.key(config.seed), variables, tx, ema=config.ema_decay > 0)
    )

    # One update, and what is looked at now and then.
    loss = functools.partial(faster_rcnn.loss, model, options=config.loss)
    train_step = parallel.parallel_train_step(
        functools.partial(
            steps.train_step,
            loss_fn=loss,
            tx=tx,
            ema_decay=config.ema_decay,
            axis_name=parallel.AXIS,
        )
    )
    eval_step = parallel.parallel_eval_step(
        functools.partial(steps.eval_step, loss_fn=loss, axis_name=parallel.AXIS)
    )
    description = Description(
        config.architecture, train.classes, train.category_ids, config.canvases, config.detect
    )
    finder = predictor.faster_rcnn_predictor(description)
    log = logging.MetricsLog(config.out)
    begun -= log.seconds()  # What earlier starts took counts too.
    val_batches = pipeline.eval_pipeline(
        val, canvases=config.canvases, batch_size=config.batch_size, max_objects=rows
    )
    truth = sources.to_coco(val)

    def evaluate(now: state.TrainState) -> dict[str, float]:
        averaged = state.ema_variables(now)
        found = predictor.detect_source(finder, averaged, val, batch_size=config.batch_size)
        sheet = predictor.contact_sheet(val, found, n_pictures=config.n_pictures)
        step = int(now.step)
        draw.save_png(config.out / "pictures" / f"val_{step:06d}.png", sheet)
        log.image(step, "val", sheet)
        metrics = coco.evaluate_boxes(truth, found).metrics
        losses = steps.evaluate_losses(
            jax.random.key(config.seed), eval_step, averaged, pipeline.iterate(val_batches)
        )
        return losses | metrics

    metadata = to_metadata(description) | {"config": recipes.as_json(config)}
    saved = checkpoints.Checkpoints(config.out / "checkpoints", metadata=metadata)
    if saved.last_step() is not None:
        begun_with = saved.last_metadata()
        recipes.check_same_run(
            *({"classes": m["classes"]} | m["config"] for m in (begun_with, metadata)),
            free=FREE,
            where=config.out,
        )
        print(f"{config.out}: going on from step {saved.last_step()} of {config.steps}.")
    logging.write_atomically(
        config.out / "config.json", json.dumps(recipes.as_json(config), indent=2) + "\n"
    )

    # The loop, then the best checkpoint on the test split.
    loop.run(
        first,
        step=train_step,
        batches=functools.partial(
            pipeline.iterate, batches, threads=config.threads, workers=config.workers
        ),
        steps=config.steps,
        checkpoints=saved,
        log=log,
        evaluate=evaluate,
        best_metric="AP",
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
    )
    saved.close()
    log.close()
    return report(config, finder, begun=begun)


def report(config: Config, finder: predictor.Predictor, *, begun: float) -> dict[str, float]:
    """Evaluates the best checkpoint on the test split, writes tables and pictures."""
    test = open_split(config, config.test_split, classes=finder.classes)
    variables, _ = checkpoints.load_variables(config.out)
    found = predictor.detect_source(
        finder, parallel.replicate(variables), test, batch_size=config.batch_size
    )
    coco.write_results(config.out / "detections.json", found)
    evaluation = coco.evaluate_boxes(sources.to_coco(test), config.out / "detections.json")
    draw.save_png(
        config.out / "pictures" / "test.png",
        predictor.contact_sheet(test, found, n_pictures=2 * config.n_pictures),
    )
    figures.precision_recall_figure(
        config.out / "precision_recall.png", evaluation.precision50, list(evaluation.per_class)
    )
    figures.training_curves(config.out / "curves.png", logging.read_rows(config.out))
    print(coco.as_table(evaluation))
    logging.write_results(
        config.out / "results.json",
        evaluation.metrics,
        seconds=time.perf_counter() - begun,
        seed=config.seed,
    )
    return evaluation.metrics


if __name__ == "__main__":
    try:
        main(recipes.from_command_line(CONFIGS, default="shapes", description=__doc__ or ""))
    except loop.Interrupted as stop:
        print(f"\n{stop} The same command goes on from there.", file=sys.stderr)
        raise SystemExit(stop.exit_code) from None
    except (ValueError, loop.TrainingDiverged) as fault:
        print(f"\n{fault}", file=sys.stderr)
        raise SystemExit(1) from None
