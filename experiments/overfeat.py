"""OverFeat: a classifier of windows slides over pictures at several scales, and boxes merge.

Source    Sermanet et al. 2014 (arXiv:1312.6229v4).
Expected  shapes, seed 0, on the 512 test pictures: AP50 0.587; of the 434 with several objects
          0.574 (all scales, merged), 0.121 (not merged), 0.451 (one scale), at most 0.046 (the
          middle window, of one scale or another); of the 913 objects far from the middle 0.469,
          0.126, 0.297 and 0.000. 25 to 41 minutes beside other work on two cores; with
          --steps 5000 AP50 is 0.32
Run       python experiments/overfeat.py
          python experiments/overfeat.py folder --data PATH
Check     python experiments/overfeat.py smoke
Writes    runs/NAME/: config.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}/, pictures/,
          curves.png; scales.png (maps of scores and boxes of each scale, before and after merging);
          table.json (the middle window, one scale, all scales, coarse and fine, merged or
          not);
          detections.json (a COCO results file), results.json; classifier/ (of the first stage)
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxdet import feeds, predictor, reports
from jaxdet.data import pipeline, selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.selection import Selection
from jaxdet.metrics import coco
from jaxdet.structures import Images
from jaxdet.systems import overfeat
from jaxdet.systems.overfeat import Architecture, DetectOptions, LossOptions
from jaxdet.training import checkpoints, fit, logging, parallel, processes, recipes, state
from jaxdet.viz import draw, figures, score_maps
from jaxdet.weights.description import Description, to_metadata


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection()
    canvases: tuple[tuple[int, int], ...] = ((128, 128),)
    """(height, width) of the arrays that pictures are resized onto."""
    augmentation: Augmentation = Augmentation(brightness=0.2, contrast=0.2)
    architecture: Architecture = Architecture()
    loss: LossOptions = LossOptions()
    detect: DetectOptions = DetectOptions()
    training: OmitArgPrefixes[fit.Options] = fit.Options()
    """Of features and classifier."""
    box_steps: int = 1000
    """Updates of the box regressor after that, which is trained otherwise alike."""
    n_pictures: int = 8
    """Pictures drawn at each evaluation."""
    out: pathlib.Path = pathlib.Path("runs/overfeat")
    """Folder of the run; one with checkpoints is gone on with."""


SHAPES = Config(
    augmentation=Augmentation(vertical_flip=0.5, brightness=0.2, contrast=0.2),
    architecture=Architecture("small", dropout=0.0, box_hidden=(256, 128)),
    loss=LossOptions(sample_size=12, object_sides=(0.6, 1.0), window_sides=(34.0, 96.0)),
    detect=DetectOptions(scales=(0.33, 0.47, 0.67, 0.94)),
    training=fit.Options(
        batch_size=8,
        steps=12_000,
        optimizer="adamw",
        learning_rate=8e-3,
        weight_decay=0.02,
        warmup_steps=100,
        ema_decay=0.995,
        evaluate_every=3000,
        checkpoint_every=500,
    ),
    box_steps=1500,
)
SMOKE = dataclasses.replace(
    SHAPES,
    selection=Selection(scenes="tiny"),
    loss=LossOptions(sample_size=4, window_sides=(34.0, 96.0)),
    detect=DetectOptions(scales=(0.5,), max_candidates=20, max_detections=10),
    training=fit.Options(
        batch_size=4,
        steps=2,
        warmup_steps=1,
        evaluate_every=2,
        checkpoint_every=2,
        log_every=1,
    ),
    box_steps=2,
    n_pictures=1,
    out=pathlib.Path("runs/overfeat_smoke"),
)
FOLDER = dataclasses.replace(
    SHAPES,
    selection=Selection(data=""),
    canvases=((320, 416), (416, 320)),
    augmentation=Augmentation(scale=(0.8, 1.25), brightness=0.2, contrast=0.2, saturation=0.2),
    loss=SHAPES.loss._replace(window_sides=(48.0, 320.0)),
    detect=DetectOptions(scales=(0.12, 0.2, 0.35, 0.6)),
    training=dataclasses.replace(SHAPES.training, steps=4000, evaluate_every=2000),
    box_steps=2000,
    out=pathlib.Path("runs/overfeat_folder"),
)
CONFIGS = {
    "shapes": ("Generated scenes.", SHAPES),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures (--data PATH).", FOLDER),
}
# What may differ when a run is gone on with.
FREE = (*selection.FREE, "box_steps", "n_pictures", "out")


def main(config: Config) -> dict[str, float]:
    """Trains the classifier and then the boxes, evaluates, writes; returns the test metrics."""
    begun = time.perf_counter() - logging.seconds(config.out, config.out / "classifier")
    if not (config.loss.train_classifier and config.loss.train_boxes):
        raise ValueError(
            "--loss.train-classifier and --loss.train-boxes are set by each stage. "
            f"Got {config.loss}"
        )
    config.training.check(box_steps=config.box_steps)
    data = selection.open_parts(config.selection)
    train = data.train
    print(sources.describe(train), sources.describe(data.val), sep="\n", flush=True)
    model = overfeat.build(
        len(train.classes),
        config.architecture,
        axis_name=parallel.AXIS,
        dtype=jnp.bfloat16 if config.training.bfloat16 else jnp.float32,
    )
    variables = state.initial_variables(
        jax.random.key(config.training.seed), model, canvas=config.canvases[0]
    )
    print(state.describe(variables), flush=True)

    description = Description(
        config.architecture, train.classes, train.category_ids, config.canvases, config.detect
    )
    finder = predictor.from_description(description)
    run = functools.partial(
        run_stage, config, model=model, finder=finder, data=data, description=description
    )
    classes = config.loss._replace(train_boxes=False)
    first = dataclasses.replace(config.training, best_metric="loss", lower_is_better=True)
    if not run(variables, classes, first, out=config.out / "classifier"):
        return {}
    variables, _ = processes.on_first(lambda: checkpoints.load_variables(config.out / "classifier"))
    boxes = config.loss._replace(train_classifier=False)
    options = dataclasses.replace(config.training, steps=config.box_steps)
    run(variables, boxes, options, out=config.out, before=config.training.steps)
    return report(config, finder, description, begun=begun)


def run_stage(
    config: Config,
    variables: Any,
    loss_options: LossOptions,
    options: fit.Options,
    *,
    out: pathlib.Path,
    before: int = 0,
    model: overfeat.OverFeat,
    finder: predictor.Predictor,
    data: selection.Parts,
    description: Description,
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
    loss = functools.partial(overfeat.loss, model, options=loss_options)
    truth = sources.to_coco(val)
    val_batches = feeds.evaluation(val, canvases=config.canvases, batch_size=options.batch_size)
    val_losses = fit.validation_losses(loss, batches=val_batches, seed=options.seed)
    watch = reports.watch(
        finder, val, n_pictures=config.n_pictures, batch_size=options.batch_size, log=log
    )

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        losses = val_losses(variables)
        if not loss_options.train_boxes:
            return losses
        return losses | coco.evaluate_boxes(truth, watch(variables, step)).metrics

    ended = fit.fit(
        variables,
        loss_fn=loss,
        feed=feed,
        evaluate=evaluate,
        best_metric="AP50" if loss_options.train_boxes else "loss",
        options=options,
        log=log,
        config=config,
        metadata=to_metadata(description),
        before=before,
        free=FREE,
        trainable=functools.partial(overfeat.is_trainable, options=loss_options),
    )
    figures.training_curves(out / "curves.png", logging.read_rows(out))
    return ended


def ways_to_look(config: Config) -> dict[str, DetectOptions]:
    """What the table compares."""
    all_scales = config.detect._replace(fine=True)
    middle = all_scales.scales[len(all_scales.scales) // 2]
    alone = all_scales._replace(middle=True, score_threshold=0.0, max_candidates=1)
    ways = {
        f"the middle window, x{scale:g}": alone._replace(scales=(scale,))
        for scale in all_scales.scales
    } | {
        "one scale, coarse": all_scales._replace(scales=(middle,), fine=False),
        "one scale, fine": all_scales._replace(scales=(middle,)),
    }
    if len(all_scales.scales) == 1:
        return ways
    return ways | {
        "all scales, coarse": all_scales._replace(fine=False),
        "all scales, fine, not merged": all_scales._replace(merge_threshold=-1.0),
        "all scales, fine": all_scales,
    }


def with_several(source: Source) -> Source:
    """Returns the pictures with more than one object."""
    indices = [i for i, a in enumerate(source.annotations) if a.objects.sum() > 1]
    return sources.select(source, indices, name=f"{source.name} [several objects]")


def off_centre(source: Source) -> Source:
    """Returns the pictures with objects a quarter of the picture's diagonal or more off its middle.

    Their other objects are difficult: they count neither for nor against their own class.
    """
    indices, annotations = [], []
    for i, annotation in enumerate(source.annotations):
        boxes, size = annotation.boxes, np.array(annotation.size[::-1])
        away = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - size / 2, axis=1)
        far = (away >= np.linalg.norm(size) / 4) & ~annotation.crowd
        if (far & ~annotation.difficult).any():
            indices.append(i)
            annotations.append(annotation._replace(difficult=annotation.difficult | ~far))
    part = sources.select(source, indices, name=f"{source.name} [off centre]")
    return dataclasses.replace(part, annotations=tuple(annotations))


def compare(
    config: Config, description: Description, variables: Any, test: Source
) -> dict[str, dict[str, float]]:
    """The same classifier looking once, at one scale, and at all: AP50 and AR100 of each."""
    parts = {
        name: part
        for name, part in (("several", with_several(test)), ("off_centre", off_centre(test)))
        if len(part)
    }
    for part in parts.values():
        print(sources.describe(part), flush=True)
    table: dict[str, dict[str, float]] = {}
    for name, options in ways_to_look(config).items():
        finder = predictor.from_description(description._replace(detect=options))
        found = predictor.group_by_picture(
            predictor.detect_source(finder, variables, test, batch_size=config.training.batch_size)
        )
        row = table[name] = {}
        for title, part in parts.items():
            own = [r for a in part.annotations for r in found.get(a.image_id, [])]
            metrics = coco.evaluate_boxes(sources.to_coco(part), own).metrics
            row |= {f"{title}/{key}": metrics[key] for key in ("AP50", "AR100")}
        print(f"{name:30}" + "".join(f"{k:>20} {v:.3f}" for k, v in row.items()), flush=True)
    return table


def draw_scales(config: Config, classes: tuple[str, ...], variables: Any, test: Source) -> Any:
    """For a few pictures: how sure each scale is of any object, its boxes, and all merged."""
    options = config.detect
    model = overfeat.build(len(classes), config.architecture)
    apart = options._replace(merge_threshold=-1.0)
    looks = {
        scale: jax.jit(functools.partial(overfeat.look, model, scale=scale, fine=options.fine))
        for scale in options.scales
    }
    ways = {f"x{scale:g}": apart._replace(scales=(scale,)) for scale in options.scales}
    ways |= {"all boxes": apart, "merged": options}
    detects = {
        title: jax.jit(functools.partial(overfeat.detect, model, options=way))
        for title, way in ways.items()
    }
    shown = predictor.spread(test, config.n_pictures)
    batches = pipeline.eval_pipeline(shown, canvases=config.canvases, batch_size=1)
    cells = []
    for batch in pipeline.iterate(batches):
        images = Images(*map(jnp.asarray, batch.images[:2]))
        picture = np.asarray(images.pixels[0])
        backgrounds = {}
        for scale, look in looks.items():
            seen = jax.device_get(look(variables, images))
            scores = 1 - seen.scores[0, ..., 0]
            backgrounds[f"x{scale:g}"] = score_maps.draw_scores(picture, scores, seen.windows)
        for title, detect in detects.items():
            found = [x[0] for x in jax.device_get(detect(variables, images))]
            below = backgrounds.get(title, picture)
            cells.append(draw.titled(drawn(found, below, classes), title))
    return draw.contact_sheet(cells, len(ways), margin=4)


def drawn(found: Sequence[Any], picture: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The picture with what is detected on it."""
    boxes, scores, labels, valid = found
    return draw.draw_boxes(picture, boxes, labels, classes, scores=scores, valid=valid, magnify=2)


def report(
    config: Config, finder: predictor.Predictor, description: Description, *, begun: float
) -> dict[str, float]:
    """Evaluates the best checkpoint on the test split, writes tables and pictures."""
    variables, test, found = reports.on_test(
        finder,
        config.selection,
        out=config.out,
        batch_size=config.training.batch_size,
        n_pictures=2 * config.n_pictures,
    )
    if config.n_pictures:
        scales = draw_scales(config, finder.classes, variables, test)
        draw.save_png(config.out / "scales.png", scales)
    evaluation = coco.evaluate_boxes(sources.to_coco(test), found)
    print(coco.as_table(evaluation), flush=True)
    table: Mapping[str, Any] = compare(config, description, variables, test)
    text = json.dumps(table, indent=2) + "\n"
    logging.write_atomically(config.out / "table.json", text)
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
