"""Faster R-CNN: trains, evaluates, shows what it found; on generated scenes or on your pictures.

Source    Ren et al. 2015 (arXiv:1506.01497v3); feature pyramids Lin et al. 2017 (arXiv:1612.03144).
Expected  shapes: AP 0.54, AP50 0.75 on the test split, 6 to 11 minutes on two cores;
          shapes_long: AP 0.77, AP50 0.94, an hour; folder on BCCD: AP50 0.90 at step 400, 6 min.
Run       python experiments/faster_rcnn.py
          python experiments/faster_rcnn.py folder --data PATH
          python experiments/faster_rcnn.py folder --data PATH --weights fasterrcnn_resnet50_fpn
          python experiments/faster_rcnn.py folder --data PATH --init-from runs/shapes
          python experiments/faster_rcnn.py folder --data PATH --backbone resnet50
Check     python experiments/faster_rcnn.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/, pictures/,
          detections.json (a COCO results file), precision_recall.png, curves.png, results.json
"""

import dataclasses
import functools
import pathlib
import time
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from tyro.conf import OmitArgPrefixes

from jaxdet import feeds, predictor, reports
from jaxdet.data import pipeline, selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.selection import Selection
from jaxdet.metrics import coco
from jaxdet.proposals.rpn import ProposalOptions, RPNTargets
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.systems.architectures import Architecture
from jaxdet.systems.faster_rcnn import DetectOptions, LossOptions
from jaxdet.training import checkpoints, fit, logging, parallel, processes, recipes, state
from jaxdet.viz import figures
from jaxdet.weights import classifiers, detectors, download
from jaxdet.weights.classifiers import Pretrained
from jaxdet.weights.description import Description, name_of, to_metadata
from jaxdet.weights.detectors import Detector


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection()
    canvases: tuple[tuple[int, int], ...] = ((128, 128),)
    """(height, width) of the arrays that pictures are resized onto, multiples of 32."""
    max_objects: int | None = None
    """Rows for ground truth of an image; what the data needs if None, several times as many with
    mosaics or pasted objects."""
    augmentation: Augmentation = Augmentation()
    architecture: Architecture = Architecture()
    """Not read where `weights` are given, which have their own."""
    weights: Annotated[str, tyro.conf.arg(aliases=["--init-from"])] = ""
    """What to begin from: a published name, a file (.pth, .safetensors), or another run. Classes
    that it knows by name keep their part of the head, the others get a new one."""
    backbone: str | None = None
    """A trained classifier for the backbone to begin with, which then has its depth and width: a
    published name (resnet50, mobilenet_v3_large), a file, or a run of classifier.py. As torchvision
    does: --architecture.norm frozen --architecture.n-frozen 2; it learns more slowly than the rest
    with --rates ^backbone/body/ 0.1."""
    fine_tune_rate: float = 1e-4
    """In place of `learning_rate` where `weights` are given."""
    n_frozen: int | None = None
    """With `weights`: parts of the backbone that are not trained, 1 for the stem, 2 for C2 as well;
    as torchvision fine-tunes (or as the run was trained) if None."""
    norm_epsilon: float | None = None
    """With `weights`: of batch norms; if None, 0 for the published fasterrcnn_resnet50_fpn, as
    torchvision has it, 1e-5 for others."""
    loss: LossOptions = LossOptions()
    detect: DetectOptions = DetectOptions()
    training: OmitArgPrefixes[fit.Options] = fit.Options()
    n_pictures: int = 8
    """Pictures drawn at each evaluation."""
    out: pathlib.Path = pathlib.Path("runs/faster_rcnn")
    """Folder of the run; one with checkpoints is gone on with."""


# For `--layer-decay`, of the residual network.
LAYERS = ("/body/(conv1|bn1)/", *(f"/body/layer{i}/" for i in range(1, 5)))
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
    training=fit.Options(
        batch_size=8,
        steps=2500,
        optimizer="adamw",
        layers=LAYERS,
        learning_rate=1.5e-3,
        weight_decay=0.05,
        warmup_steps=200,
        evaluate_every=1250,
        checkpoint_every=500,
    ),
    out=pathlib.Path("runs/shapes"),
)
SHAPES_LONG = dataclasses.replace(
    SHAPES,
    selection=Selection(scenes="large"),
    architecture=dataclasses.replace(
        SMALL,
        width=48,
        first_stage=0,
        anchor_sizes=((20.0,), (32.0,), (50.0,), (72.0,)),
        canonical_size=192.0,
    ),
    training=dataclasses.replace(
        SHAPES.training,
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=100,
        steps=8000,
        ema_decay=0.999,
        evaluate_every=2000,
        checkpoint_every=1000,
    ),
    out=pathlib.Path("runs/shapes_long"),
)
SMOKE = dataclasses.replace(
    SHAPES,
    selection=Selection(scenes="tiny"),
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
    n_pictures=2,
    training=dataclasses.replace(
        SHAPES.training,
        batch_size=4,
        steps=6,
        layers=LAYERS[:4],
        warmup_steps=2,
        evaluate_every=4,
        checkpoint_every=2,
        log_every=1,
    ),
    out=pathlib.Path("runs/smoke"),
)
FOLDER = dataclasses.replace(
    SHAPES,
    selection=Selection(data=""),
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
    training=dataclasses.replace(
        SHAPES.training,
        batch_size=8,
        steps=1600,
        learning_rate=2e-3,
        warmup_steps=100,
        evaluate_every=400,
        checkpoint_every=200,
    ),
    out=pathlib.Path("runs/folder"),
)
COCO = Config(
    selection=Selection(data="", threads=8),
    canvases=((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
    architecture=Architecture(norm="batch", n_frozen=0),
    training=fit.Options(
        steps=270_000,
        layers=LAYERS,
        schedule="step",
        warmup_steps=1000,
        bfloat16=True,
        evaluate_every=10_000,
        checkpoint_every=2500,
    ),
    out=pathlib.Path("runs/coco"),
)
VOC07 = dataclasses.replace(
    COCO,
    selection=dataclasses.replace(COCO.selection, train_split="trainval", val_split="test"),
    canvases=((608, 800), (800, 608)),
    augmentation=Augmentation(scale=(0.5, 1.5), brightness=0.2, contrast=0.2, saturation=0.2),
    training=dataclasses.replace(COCO.training, steps=40_000, evaluate_every=5000),
    out=pathlib.Path("runs/voc07"),
)
CONFIGS = {
    "shapes": ("Generated scenes; 8 minutes on two CPU cores.", SHAPES),
    "shapes_long": ("The same scenes; an hour on two CPU cores.", SHAPES_LONG),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures (--data PATH), from random weights.", FOLDER),
    "voc07": ("PASCAL VOC 2007, trainval; the best on test is kept. For accelerators.", VOC07),
    "coco": ("COCO 2017 (--data coco), from random weights, 37 epochs; for accelerators.", COCO),
}
# What may differ when a run is gone on with.
FREE = (*selection.FREE, "n_pictures", "out")


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates, writes; returns the metrics of the test split."""
    begun = time.perf_counter()
    config, trained = read_beginning(config)
    options, chosen = config.training, config.selection
    log = logging.MetricsLog(config.out)
    begun -= logging.seconds(config.out)  # Earlier starts count, too.

    # Data.
    train, rates, val = selection.open_parts(chosen)
    print(sources.describe(train), sources.describe(val), sep="\n", flush=True)
    varied = config.augmentation
    rows = config.max_objects or pipeline.max_object_count(train, augmentation=varied)
    if cut := pipeline.count_cut(train, rows, augmentation=varied):
        about = "up to " if varied.n_pictures > 1 else ""
        print(f"{about}{cut} objects do not fit into {rows} rows an image and are left out.")
    feed = feeds.training(
        train,
        selection=chosen,
        options=options,
        canvases=config.canvases,
        augmentation=varied,
        rates=rates,
        max_objects=rows,
    )

    # Model.
    dtype = jnp.bfloat16 if options.bfloat16 else jnp.float32
    model = architectures.build(
        len(train.classes), config.architecture, axis_name=parallel.AXIS, dtype=dtype
    )
    variables = state.initial_variables(
        jax.random.key(options.seed), model, canvas=config.canvases[0]
    )
    if trained is not None:
        variables, text = begun_with(trained, variables, train.classes)
        print(text)
    print(state.describe(variables), flush=True)
    loss = functools.partial(faster_rcnn.loss, model, options=config.loss)

    # What is looked at now and then.
    description = Description(
        config.architecture, train.classes, train.category_ids, config.canvases, config.detect
    )
    finder = predictor.from_description(description)
    truth = sources.to_coco(val)
    val_batches = feeds.evaluation(
        val, canvases=config.canvases, batch_size=options.batch_size, max_objects=rows
    )
    val_losses = fit.validation_losses(loss, batches=val_batches, seed=options.seed)

    watch = reports.watch(
        finder, val, n_pictures=config.n_pictures, batch_size=options.batch_size, log=log
    )

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        found = watch(variables, step)
        return val_losses(variables) | coco.evaluate_boxes(truth, found).metrics

    fit.fit(
        variables,
        loss_fn=loss,
        feed=feed,
        evaluate=evaluate,
        best_metric="AP",
        options=options,
        log=log,
        config=config,
        metadata=to_metadata(description),
        free=FREE,
        trainable=functools.partial(architectures.is_trainable, architecture=config.architecture),
    )
    return report(config, finder, begun=begun)


def read_beginning(config: Config) -> tuple[Config, Detector | Pretrained | None]:
    """Returns what a run begins from, if anything, and the config with numbers that suit it."""
    if not config.weights and not (config.n_frozen is config.norm_epsilon is None):
        raise ValueError(
            "--n-frozen and --norm-epsilon are of --weights; without, give --architecture.n-frozen "
            "and --architecture.norm-epsilon."
        )
    if config.n_frozen is not None and not 0 <= config.n_frozen <= 5:
        raise ValueError(f"--n-frozen must be 0 to 5. Got {config.n_frozen}.")
    if config.weights and config.backbone:
        raise ValueError("--weights are a whole detector: give them or --backbone, not both.")
    if not config.fine_tune_rate > 0:
        raise ValueError(f"--fine-tune-rate must be above 0. Got {config.fine_tune_rate}.")
    if config.backbone:
        trained, spec = processes.on_first(functools.partial(read_backbone, config))
        return dataclasses.replace(config, architecture=spec), trained
    if not config.weights:
        return config, None
    # A run that is gone on with needs no weights but its own.
    path = config.out if checkpoints.exist(config.out) else config.weights
    trained = processes.on_first(functools.partial(read_detector, path, config.norm_epsilon))
    spec = trained.description.architecture
    if config.n_frozen is not None:
        spec = dataclasses.replace(spec, n_frozen=config.n_frozen)
    rate = dataclasses.replace(config.training, learning_rate=config.fine_tune_rate)
    print(
        f"The weights were made for pictures of {trained.description.canvases}; here they have "
        f"--canvases {config.canvases}. Larger ones find more, and take longer.\n"
        f"The learning rate is --fine-tune-rate {config.fine_tune_rate}."
    )
    return dataclasses.replace(config, architecture=spec, training=rate), trained


def read_detector(path: str | pathlib.Path, norm_epsilon: float | None = None) -> Detector:
    """Returns the Faster R-CNN of a run, a file or a published name."""
    detector = detectors.load(path, norm_epsilon=norm_epsilon, progress=download.show_progress)
    architecture = detector.description.architecture
    if not isinstance(architecture, Architecture):
        raise ValueError(f"{path}: is a {name_of(architecture)}, no Faster R-CNN.")
    return detector


def read_backbone(config: Config) -> tuple[Pretrained | None, Architecture]:
    """Returns the classifier that a run begins with, unless it has begun, and the architecture."""
    if checkpoints.exist(config.out):
        own = read_detector(config.out).description.architecture
        names = ("backbone", "depth", "width", "norm_epsilon")
        changed = {name: getattr(own, name) for name in names}
        return None, dataclasses.replace(config.architecture, **changed)
    pretrained = classifiers.load(str(config.backbone), progress=download.show_progress)
    try:
        return pretrained, classifiers.as_backbone(pretrained.network, config.architecture)
    except ValueError as fault:
        raise ValueError(f"{config.backbone}: {fault}.") from fault


def begun_with(
    trained: Detector | Pretrained, fresh: Any, classes: tuple[str, ...]
) -> tuple[Any, str]:
    """Returns just drawn variables with what is trained, and a sentence on what is new."""
    if isinstance(trained, Pretrained):
        return classifiers.begin_backbone_with(fresh, trained)
    return detectors.with_head_for(
        trained.variables,
        jax.device_get(fresh),
        known=trained.description.classes,
        wanted=classes,
    )


def report(config: Config, finder: predictor.Predictor, *, begun: float) -> dict[str, float]:
    """Evaluates the best checkpoint on the test split, writes tables and pictures."""
    _, test, _ = reports.on_test(
        finder,
        config.selection,
        out=config.out,
        batch_size=config.training.batch_size,
        n_pictures=2 * config.n_pictures,
    )
    evaluation = coco.evaluate_boxes(sources.to_coco(test), config.out / "detections.json")
    figures.precision_recall_figure(
        config.out / "precision_recall.png", evaluation.precision50, list(evaluation.per_class)
    )
    figures.training_curves(config.out / "curves.png", logging.read_rows(config.out))
    print(coco.as_table(evaluation))
    logging.write_results(
        config.out / "results.json",
        evaluation.metrics,
        pictures=test.name,
        begun=begun,
        seed=config.training.seed,
    )
    return evaluation.metrics


if __name__ == "__main__":
    recipes.run_experiment(main, CONFIGS, default="shapes", description=__doc__ or "")
