"""Classification of pictures: trains any network of jaxdet.features, or goes on with a trained one.

Source    He et al. 2016 (arXiv:1512.03385), section 3.4; transfer: Yosinski et al. 2014
          (arXiv:1411.1792), section 3.
Expected  shapes: top-1 0.680, top-5 0.986 of 512 test pictures of one object, seed 0; 4.9 minutes
          on two cores. experiments/localizer.py, which learns boxes beside the classes with
          the same network, has both right in 0.854 of them.
Run       python experiments/classifier.py
          python experiments/classifier.py folder --data PATH --weights resnet18
          python experiments/classifier.py folder --data VOC --crops 0.1
          python experiments/classifier.py folder --data tfds:imagenette
Check     python experiments/classifier.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/, pictures/,
          detections.json (guesses as a COCO results file, boxes are whole pictures), curves.png,
          results.json; guesses below 0.5 are not drawn
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
from jaxdet.data import selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.selection import Selection
from jaxdet.features.networks import Network
from jaxdet.systems import classifier
from jaxdet.systems.classifier import DetectOptions, LossOptions
from jaxdet.training import fit, logging, parallel, processes, recipes, state
from jaxdet.viz import figures
from jaxdet.weights import classifiers, download
from jaxdet.weights.description import Description, to_metadata


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection(scenes="single")
    canvases: tuple[tuple[int, int], ...] = ((48, 48),)
    """(height, width) of the arrays that pictures are resized onto."""
    augmentation: Augmentation = Augmentation()
    network: Network = Network()
    """That of `weights`, where they are published or of a run."""
    weights: Annotated[str, tyro.conf.arg(aliases=["--init-from"])] = ""
    """What to begin from: a run, a published name, or a file (.pth, .safetensors). For other
    classes the last layer is new."""
    loss: LossOptions = LossOptions()
    detect: DetectOptions = DetectOptions()
    training: OmitArgPrefixes[fit.Options] = fit.Options()
    n_pictures: int = 16
    """Pictures drawn at each evaluation."""
    out: pathlib.Path = pathlib.Path("runs/classifier")
    """Folder of the run; one with checkpoints is gone on with."""


SHAPES = Config(
    augmentation=Augmentation(vertical_flip=0.5, brightness=0.2, contrast=0.2),
    network=Network(width=32, n_stages=3),
    training=fit.Options(
        batch_size=32,
        steps=3000,
        optimizer="adamw",
        learning_rate=1.25e-3,
        weight_decay=0.05,
        warmup_steps=100,
        ema_decay=0.995,
        evaluate_every=500,
    ),
)
SMOKE = dataclasses.replace(
    SHAPES,
    selection=Selection(scenes="single_tiny"),
    canvases=((64, 64),),
    network=Network(width=16, n_stages=1),
    training=fit.Options(
        batch_size=4, steps=4, warmup_steps=1, evaluate_every=2, checkpoint_every=2, log_every=1
    ),
    n_pictures=2,
    out=pathlib.Path("runs/classifier_smoke"),
)
FOLDER = dataclasses.replace(
    SHAPES,
    selection=Selection(data="", cache_mb=2048),
    canvases=((224, 224),),
    augmentation=Augmentation(scale=(0.8, 1.5), brightness=0.2, contrast=0.2, saturation=0.2),
    network=Network(),
    loss=LossOptions(label_smoothing=0.1),
    training=dataclasses.replace(SHAPES.training, batch_size=16, learning_rate=3e-4, steps=2000),
    out=pathlib.Path("runs/classifier_folder"),
)
IMAGENET = dataclasses.replace(
    FOLDER,
    selection=Selection(data="", threads=16, cache_mb=0),
    augmentation=Augmentation(scale=(1.0, 2.0), brightness=0.4, contrast=0.4, saturation=0.4),
    network=Network(depth=50),
    training=fit.Options(
        batch_size=256,
        steps=450_000,
        learning_rate=0.00625,
        warmup_steps=25_000,
        ema_decay=0.0,
        bfloat16=True,
        evaluate_every=10_000,
        checkpoint_every=5000,
    ),
    out=pathlib.Path("runs/imagenet"),
)
CONFIGS = {
    "shapes": ("Generated scenes of one object.", SHAPES),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures by class, or with boxes and --crops 0.1 (--data PATH).", FOLDER),
    "imagenet": ("ILSVRC 2012 (--data tfds:imagenet2012), 90 epochs; for accelerators.", IMAGENET),
}
# What may differ when a run is gone on with.
FREE = (*selection.FREE, "n_pictures", "out")


def main(config: Config) -> dict[str, float]:
    """Trains, evaluates, writes; returns the metrics of the test split."""
    log = logging.MetricsLog(config.out)
    begun = time.perf_counter() - logging.seconds(config.out)  # Earlier starts count, too.
    chosen, options = config.selection, config.training

    # Data.
    train, rates, val = selection.open_parts(chosen)
    print(sources.describe(train), sources.describe(val), sep="\n", flush=True)
    several = sum(len(annotation.labels) > 1 for annotation in train.annotations)
    if several > len(train) / 2:
        raise ValueError(
            f"{train.name}: {several} of {len(train)} pictures hold several objects, and a "
            "classifier gives a picture one class. Cut the objects out (--crops 0.1), or keep the "
            "pictures of one object (--n-objects 1)."
        )
    feed = feeds.training(
        train,
        selection=chosen,
        options=options,
        canvases=config.canvases,
        augmentation=config.augmentation,
        rates=rates,
    )

    # Model.
    pretrained = None
    if config.weights:
        read = functools.partial(
            classifiers.load,
            config.weights,
            network=config.network,
            progress=download.show_progress,
        )
        pretrained = processes.on_first(read)
        config = dataclasses.replace(config, network=pretrained.network)
    model = classifier.build(
        len(train.classes),
        config.network,
        axis_name=parallel.AXIS,
        dtype=jnp.bfloat16 if options.bfloat16 else jnp.float32,
    )
    variables = state.initial_variables(
        jax.random.key(options.seed), model, canvas=config.canvases[0]
    )
    if pretrained is not None:
        new = pretrained.classes != train.classes
        variables = classifiers.begin_with(variables, pretrained, new_head=new)
    print(state.describe(variables), flush=True)
    loss = functools.partial(classifier.loss, model, options=config.loss)

    # What is looked at now and then.
    description = Description(
        config.network, train.classes, train.category_ids, config.canvases, config.detect
    )
    finder = predictor.from_description(description)
    val_batches = feeds.evaluation(val, canvases=config.canvases, batch_size=options.batch_size)
    val_losses = fit.validation_losses(loss, batches=val_batches, seed=options.seed)
    watch = reports.watch(
        finder,
        predictor.spread(val, config.n_pictures),
        n_pictures=config.n_pictures,
        batch_size=options.batch_size,
        log=log,
        columns=4,
    )

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        watch(variables, step)
        return val_losses(variables)

    fit.fit(
        variables,
        loss_fn=loss,
        feed=feed,
        evaluate=evaluate,
        best_metric="top1",
        options=options,
        log=log,
        config=config,
        metadata=to_metadata(description),
        free=FREE,
        trainable=functools.partial(
            classifier.is_trainable, last_layer=model.last_layer, options=config.loss
        ),
    )
    return report(config, finder, predictor.judge_of(description, finder), begun=begun)


def report(
    config: Config, finder: predictor.Predictor, judge: predictor.Predictor, *, begun: float
) -> dict[str, float]:
    """Evaluates the best checkpoint on the test split, writes tables and pictures."""
    batch_size = config.training.batch_size
    variables, test, _ = reports.on_test(
        finder,
        config.selection,
        out=config.out,
        batch_size=batch_size,
        n_pictures=2 * config.n_pictures,
        columns=4,
    )
    figures.training_curves(config.out / "curves.png", logging.read_rows(config.out))
    measured = predictor.measure_source(judge, variables, test, batch_size=batch_size)
    metrics = {name: measured[name] for name in ("top1", "top5")}
    for name, value in metrics.items():
        print(f"{name} {value:.3f}")
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
