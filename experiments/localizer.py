"""Classification and localization: what is the object in a picture, or two of them, and where?

Source    OverFeat: Sermanet et al. 2014 (arXiv:1312.6229v4), section 4; VGG: Simonyan & Zisserman
          2015 (arXiv:1409.1556v6), appendix A; R-CNN's codes of boxes: arXiv:1311.2524v5.
Expected  shapes: right class and box in 0.854 of 512 test pictures, mean IoU 0.859, in 3.6 minutes
          on two cores (Intel, AVX-512), drawing the scenes included; 0.902 and 0.859 on AMD's.
          staged: the classifier for 3000 steps, then the head for 1000: 0.652, 0.729, 4.2 minutes.
          pair: of both objects AP50 0.457 and AR100 0.443, from five guesses; the best guess has
          class and box of one of them in 0.620 of 508 pictures; 8 minutes beside other work.
          compare: right class and box, and mean IoU, of boxes for all classes / one a class, after
          1000 steps of the classifier and 500 of the head: 0.318, 0.676 / 0.334, 0.664 (after the
          convolutions), 0.156, 0.429 / 0.119, 0.381 (after the vector); after 1000 steps of both at
          once, in which the classifier goes on learning: 0.422, 0.802 / 0.414, 0.781 and
          0.398, 0.782 / 0.344, 0.754; 11 minutes.
Run       python experiments/localizer.py
          python experiments/localizer.py staged
          python experiments/localizer.py pair
          python experiments/localizer.py compare
          python experiments/localizer.py folder --data PATH --weights resnet18
Check     python experiments/localizer.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/, pictures/,
          progress/ (guesses about a few held-out pictures at each evaluation) and progress.png,
          detections.json (a COCO results file), curves.png, results.json; classifier/ (the first
          stage's log and checkpoints, where there is one); with compare a folder for each way, and
          table.md
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from tyro.conf import OmitArgPrefixes

from jaxdet import feeds, predictor, reports
from jaxdet.data import selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.selection import Selection
from jaxdet.features.networks import Network
from jaxdet.metrics import coco
from jaxdet.systems import localizer
from jaxdet.systems.classifier import DetectOptions
from jaxdet.systems.localizer import Architecture, LossOptions
from jaxdet.training import checkpoints, fit, logging, parallel, processes, recipes, state
from jaxdet.viz import draw, figures
from jaxdet.weights import classifiers, download
from jaxdet.weights.description import Description, to_metadata


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """What is other than in the training of the classifier."""

    steps: int = 1000
    """Updates."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    """At batch size 16; it grows with the batch."""
    weight_decay: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection(scenes="single")
    canvases: tuple[tuple[int, int], ...] = ((128, 128),)
    """(height, width) of the arrays that pictures are resized onto."""
    augmentation: Augmentation = Augmentation()
    architecture: Architecture = Architecture()
    loss: LossOptions = LossOptions()
    detect: DetectOptions = DetectOptions()
    staged: bool = False
    """Whether the classifier is trained first (or read), and then the box head alone."""
    weights: Annotated[str, tyro.conf.arg(aliases=["--init-from"])] = ""
    """A classifier to begin from: a run, a published name, or a file (.pth, .safetensors)."""
    training: OmitArgPrefixes[fit.Options] = fit.Options()
    """Of both heads at once, or of the classifier."""
    head: HeadOptions = HeadOptions()
    """Of the box head alone, where it comes second."""
    compare: bool = False
    """Whether all eight ways are trained, each in a folder of its own, for a table: where the head
    is attached, a box for all classes or one for each, in stages or at once."""
    n_pictures: int = 8
    """Pictures drawn at each evaluation."""
    out: pathlib.Path = pathlib.Path("runs/localizer")
    """Folder of the run; one with checkpoints is gone on with."""


SMALL = Architecture(Network(width=32, n_stages=3), map_size=(3, 3))
SHAPES = Config(
    canvases=((48, 48),),
    augmentation=Augmentation(vertical_flip=0.5, brightness=0.2, contrast=0.2),
    architecture=SMALL,
    training=fit.Options(
        batch_size=32,
        steps=3000,
        optimizer="adamw",
        learning_rate=1.25e-3,
        weight_decay=0.05,
        warmup_steps=100,
        ema_decay=0.995,
        evaluate_every=500,
        checkpoint_every=1000,
    ),
    out=pathlib.Path("runs/localizer"),
)
PAIR = dataclasses.replace(
    SHAPES,
    selection=Selection(scenes="pair", n_objects=2),
    canvases=((64, 64),),
    architecture=dataclasses.replace(SMALL, n_boxes=2, map_size=(4, 4)),
    loss=LossOptions(optimal=True),
    out=pathlib.Path("runs/localizer_pair"),
)
STAGED = dataclasses.replace(
    SHAPES,
    staged=True,
    out=pathlib.Path("runs/localizer_staged"),
)
SMOKE = dataclasses.replace(
    STAGED,
    selection=Selection(scenes="single_tiny"),
    canvases=((64, 64),),
    architecture=Architecture(Network(width=16, n_stages=1), features=16, map_size=(4, 4)),
    head=HeadOptions(steps=4),
    training=fit.Options(
        batch_size=4, steps=2, warmup_steps=1, evaluate_every=2, checkpoint_every=2, log_every=1
    ),
    n_pictures=2,
    out=pathlib.Path("runs/localizer_smoke"),
)
FOLDER = dataclasses.replace(
    SHAPES,
    selection=Selection(data="", n_objects=1),
    canvases=((224, 224),),
    augmentation=Augmentation(scale=(0.7, 1.3), brightness=0.2, contrast=0.2, saturation=0.2),
    architecture=Architecture(Network()),
    training=dataclasses.replace(
        SHAPES.training,
        batch_size=16,
        steps=2000,
        learning_rate=3e-4,
        evaluate_every=500,
        checkpoint_every=500,
    ),
    out=pathlib.Path("runs/localizer_folder"),
)
COMPARE = dataclasses.replace(
    SHAPES,
    compare=True,
    training=dataclasses.replace(SHAPES.training, steps=1000),
    head=HeadOptions(steps=500),
    out=pathlib.Path("runs/localizer_compare"),
)
CONFIGS = {
    "shapes": (
        "Generated scenes of one object, both heads at once; minutes on two cores.",
        SHAPES,
    ),
    "staged": ("The same: a classifier first, then the box head alone.", STAGED),
    "compare": (
        "Where the head is attached, boxes by class, training in stages: a table.",
        COMPARE,
    ),
    "pair": ("Scenes of two objects: two boxes, each for the object that it fits best.", PAIR),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures of one object (--data PATH).", FOLDER),
}
# What may differ when a run is gone on with.
FREE = (*selection.FREE, "n_pictures", "out")
MEASURES = ("top1", "localization_top1", "localization_top5", "mean_iou")
TABLE_HEAD = (
    f"| attached | boxes | trained | {' | '.join(MEASURES)} |\n|{'---|' * (3 + len(MEASURES))}"
)


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates, writes; returns the metrics of the test split."""
    return compare(config) if config.compare else run(config)[1]


def compare(config: Config) -> dict[str, float]:
    """Runs the eight ways, prints and writes their table; returns the metrics of the best.

    A budget that ends one of them ends all, without metrics.
    """
    rows, results = [TABLE_HEAD], []
    where = ("convolutions", "vector")
    for staged, attached, agnostic in itertools.product((True, False), where, (True, False)):
        names = (attached, "shared" if agnostic else "by class", "stages" if staged else "joint")
        spec = dataclasses.replace(config.architecture, attached=attached, class_agnostic=agnostic)
        out = config.out / "_".join(names).replace(" ", "_")
        # One classifier for all that begin with one; with several boxes it is of no use to others.
        trained = config.out / "convolutions_shared_stages" / "classifier"
        is_shared = staged and results and config.architecture.n_boxes == 1
        weights = str(trained) if is_shared else config.weights
        way = dataclasses.replace(
            config, compare=False, architecture=spec, staged=staged, weights=weights, out=out
        )
        # `trained` is in `out`, wherever that is, now or for another process.
        ended, metrics = run(way, free=FREE if weights == config.weights else (*FREE, "weights"))
        if not ended:
            print(f"{config.out}: the table must wait; the same command goes on.", flush=True)
            return {}
        results.append(metrics)
        numbers = (f"{metrics[name]:.3f}" for name in MEASURES)
        rows.append(f"| {' | '.join((*names, *numbers))} |")
        logging.write_atomically(config.out / "table.md", "\n".join(rows) + "\n")
    print("\n".join(rows))
    return max(results, key=lambda metrics: metrics["localization_top1"])


def check(config: Config, train: Source) -> None:
    """Raises where flags would have no effect, or boxes no object to learn from."""
    if config.staged and not (config.loss.train_classifier and config.loss.train_boxes):
        raise ValueError(
            "--loss.train-classifier and --loss.train-boxes are set by each stage. "
            f"Got {config.loss} and staged"
        )
    n_boxes = config.architecture.n_boxes
    counts = [int(a.objects.sum()) for a in train.annotations]
    if n_boxes != 1 and set(counts) != {n_boxes}:
        held = ", ".join(f"{n} in {counts.count(n)}" for n in sorted(set(counts)))
        advice = f"; --n-objects {n_boxes} keeps those that hold as many"
        raise ValueError(
            "--architecture.n-boxes must be the number of objects of every picture of "
            f"{train.name}: {held}. Got {n_boxes}{advice if n_boxes in counts else ''}"
        )


def run(config: Config, *, free: Sequence[str] = FREE) -> tuple[bool, dict[str, float]]:
    """Trains one localizer.

    Args:
      config: Of the run.
      free: What may differ in it when the run is gone on with.

    Returns:
      Whether it is at its end, and the metrics of the test split; none before the last stage.
    """
    begun = time.perf_counter() - logging.seconds(config.out, config.out / "classifier")
    if config.staged:
        config.training.check(**{"head.steps": config.head.steps})
    data = selection.open_parts(config.selection)
    train = data.train
    print(sources.describe(train), sources.describe(data.val), sep="\n", flush=True)
    check(config, train)

    # A classifier to begin with, if there is one, and a box head.
    pretrained = None
    if config.weights:
        read = functools.partial(
            classifiers.load,
            config.weights,
            network=config.architecture.network,
            progress=download.show_progress,
        )
        pretrained = processes.on_first(read)
        spec = dataclasses.replace(config.architecture, network=pretrained.network)
        config = dataclasses.replace(config, architecture=spec)
    model = localizer.build(
        len(train.classes),
        config.architecture,
        axis_name=parallel.AXIS,
        dtype=jnp.bfloat16 if config.training.bfloat16 else jnp.float32,
    )
    variables = state.initial_variables(
        jax.random.key(config.training.seed), model, canvas=config.canvases[0]
    )
    is_trained = False
    if pretrained is not None:
        is_trained = pretrained.classes == train.classes and config.architecture.n_boxes == 1
        variables = classifiers.begin_with(variables, pretrained, new_head=not is_trained)
    print(state.describe(variables), flush=True)

    # Both at once; or the classifier, then the boxes.
    description = Description(
        config.architecture, train.classes, train.category_ids, config.canvases, config.detect
    )
    finder = predictor.from_description(description)
    judge = predictor.judge_of(description, finder)
    stage = functools.partial(
        run_stage,
        config,
        model=model,
        finder=finder,
        judge=judge,
        data=data,
        description=description,
        free=free,
    )
    if not config.staged:
        ended = stage(variables, config.loss, config.training, out=config.out)
    else:
        if not is_trained:
            first, where = config.loss._replace(train_boxes=False), config.out / "classifier"
            if not stage(variables, first, config.training, out=where):
                return False, {}
            variables, _ = processes.on_first(lambda: checkpoints.load_variables(where))
        second = config.loss._replace(train_classifier=False)
        of_head = dataclasses.replace(config.training, **dataclasses.asdict(config.head))
        ended = stage(variables, second, of_head, out=config.out, before=config.training.steps)
    return ended, report(config, finder, judge, begun=begun)


def run_stage(
    config: Config,
    variables: Any,
    loss_options: LossOptions,
    options: fit.Options,
    *,
    out: pathlib.Path,
    before: int = 0,
    model: localizer.Localizer,
    finder: predictor.Predictor,
    judge: predictor.Predictor,
    data: selection.Parts,
    description: Description,
    free: Sequence[str],
) -> bool:
    """Trains what the loss is of, from these variables on; leaves checkpoints."""
    log, (train, rates, val) = logging.MetricsLog(out), data
    feed = feeds.training(
        train,
        selection=config.selection,
        options=options,
        canvases=config.canvases,
        augmentation=config.augmentation,
        rates=rates,
    )
    loss = functools.partial(localizer.loss, model, options=loss_options)
    val_batches = feeds.evaluation(val, canvases=config.canvases, batch_size=options.batch_size)
    val_losses = fit.validation_losses(loss, batches=val_batches, seed=options.seed)
    shown = predictor.spread(val, config.n_pictures)
    watch = reports.watch(
        finder, shown, n_pictures=config.n_pictures, batch_size=options.batch_size, log=log
    )

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        coco.write_results(out / "progress" / f"{step:06d}.json", watch(variables, step))
        return val_losses(variables) | predictor.measure_localization(
            judge, variables, val_batches()
        )

    ended = fit.fit(
        variables,
        loss_fn=loss,
        feed=feed,
        evaluate=evaluate,
        best_metric="localization_top1" if loss_options.train_boxes else "top1",
        options=options,
        log=log,
        config=config,
        metadata=to_metadata(description),
        before=before,
        free=free,
        trainable=functools.partial(localizer.is_trainable, options=loss_options),
    )
    progress = {
        f"step {int(path.stem)}": coco.read_results(path)
        for path in sorted((out / "progress").glob("*.json"))
    }
    if progress:  # The first process has it.
        draw.save_png(out / "progress.png", predictor.progress_sheet(shown, progress))
    figures.training_curves(out / "curves.png", logging.read_rows(out))
    return ended


def report(
    config: Config, finder: predictor.Predictor, judge: predictor.Predictor, *, begun: float
) -> dict[str, float]:
    """Evaluates the best checkpoint on the test split, writes tables and pictures."""
    batch_size = config.training.batch_size
    variables, test, found = reports.on_test(
        finder,
        config.selection,
        out=config.out,
        batch_size=batch_size,
        n_pictures=2 * config.n_pictures,
    )
    metrics = predictor.measure_source(judge, variables, test, batch_size=batch_size)
    for name, value in metrics.items():
        print(f"{name:18} {value:.3f}")
    evaluation = coco.evaluate_boxes(sources.to_coco(test), found)
    print(coco.as_table(evaluation))
    metrics |= evaluation.metrics
    logging.write_results(
        config.out / "results.json",
        metrics,
        pictures=test.name,
        begun=begun,
        seed=config.training.seed,
    )
    return metrics


if __name__ == "__main__":
    recipes.run_experiment(main, CONFIGS, default="shapes", description=__doc__ or "")
