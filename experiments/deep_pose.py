"""DeepPose: where are the joints of an object, first from its box, then from around each joint?

Source    Toshev & Szegedy 2014 (arXiv:1312.4659v3).
Expected  shapes: PCK at a tenth of the diagonal on the test split 0.808, 0.808, 0.802 after one
          stage and 0.818, 0.811, 0.811 after two, for seeds 0, 1, 2; 17 minutes each, two at a time
          on two cores (seed 0 on another machine)
Run       python experiments/deep_pose.py
          python experiments/deep_pose.py folder --data PATH
Check     python experiments/deep_pose.py smoke
Writes    runs/NAME/: stage1/, stage2/, ... (each with config.json, metrics.jsonl, tensorboard/,
          checkpoints/{last,best}/, curves.png, and pictures/ of poses after each stage beside the
          truth), pictures/test.png, poses.json (a COCO results file of keypoints), results.json;
          the best checkpoint of the last stage holds all of them
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxdet import feeds
from jaxdet.data import pipeline, selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.selection import Selection
from jaxdet.features.networks import Network
from jaxdet.metrics import coco, pose
from jaxdet.metrics.pose import Errors
from jaxdet.structures import Batch, Instances
from jaxdet.systems import deep_pose
from jaxdet.systems.deep_pose import Architecture, LossOptions, Poses
from jaxdet.training import checkpoints, fit, logging, parallel, processes, recipes, state
from jaxdet.viz import draw, figures, objects


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of this experiment; each field is also a flag."""

    selection: OmitArgPrefixes[Selection] = Selection(data="")
    canvases: tuple[tuple[int, int], ...] = ((480, 640), (640, 480))
    """(height, width) of the arrays that pictures are resized onto."""
    augmentation: Augmentation = Augmentation()
    architecture: Architecture = Architecture()
    limbs: tuple[tuple[int, int], ...] = (
        *((5, 7), (7, 9), (6, 8), (8, 10)),
        *((11, 13), (13, 15), (12, 14), (14, 16)),
    )
    """Pairs of joints that PCP is about; the arms and legs of COCO's person."""
    sample_size: int = 8
    """Crops of an image in a training step."""
    n_measured: int = 512
    """Training pictures on which a stage's errors are measured for the next one."""
    training: OmitArgPrefixes[fit.Options] = fit.Options(
        optimizer="adamw", learning_rate=5e-4, steps=100_000, evaluate_every=5000
    )
    """Of the first stage."""
    later_steps: int = 100_000
    """Updates of each stage after it, which is trained otherwise as the first."""
    n_pictures: int = 8
    """Objects drawn at each evaluation."""
    out: pathlib.Path = pathlib.Path("runs/deep_pose")
    """Folder of the run; one with checkpoints is gone on with."""


SMALL = Architecture(
    network=Network(width=32, n_stages=3),
    pool=0,
    hidden=(256,),
    dropout=0.0,
    torso=(1, 3),
    crop_size=48,
    box_context=1.25,
    joint_context=1.0,
)
SHAPES = Config(
    selection=Selection(scenes="single"),
    canvases=((128, 128),),
    augmentation=Augmentation(vertical_flip=0.0, brightness=0.2, contrast=0.2),
    architecture=dataclasses.replace(SMALL, n_stages=2),  # A third gains nothing here.
    limbs=((0, 1), (0, 2), (0, 3), (0, 4)),
    sample_size=1,
    training=fit.Options(
        batch_size=32,
        steps=5000,
        optimizer="adamw",
        learning_rate=1.25e-3,
        weight_decay=0.05,
        warmup_steps=100,
        ema_decay=0.995,
        evaluate_every=1000,
        checkpoint_every=1000,
    ),
    later_steps=1500,
    out=pathlib.Path("runs/deep_pose_shapes"),
)
SMOKE = dataclasses.replace(
    SHAPES,
    selection=Selection(scenes="single_tiny"),
    architecture=dataclasses.replace(
        SMALL, n_stages=2, network=Network(width=16, n_stages=1), hidden=(16,), crop_size=16
    ),
    sample_size=2,
    n_measured=16,
    training=dataclasses.replace(
        SHAPES.training,
        batch_size=4,
        steps=3,
        warmup_steps=1,
        evaluate_every=2,
        checkpoint_every=2,
        log_every=1,
    ),
    later_steps=3,
    n_pictures=2,
    out=pathlib.Path("runs/deep_pose_smoke"),
)
FOLDER = dataclasses.replace(
    SHAPES,
    selection=Selection(data=""),
    canvases=((320, 416), (416, 320)),
    augmentation=Augmentation(scale=(0.8, 1.25), brightness=0.2, contrast=0.2, saturation=0.2),
    architecture=dataclasses.replace(
        SMALL,
        network=Network(),
        hidden=(512,),
        torso=(5, 12),
        crop_size=96,
        joint_context=2.0,
    ),
    limbs=Config.limbs,
    training=dataclasses.replace(
        SHAPES.training, steps=4000, evaluate_every=1000, checkpoint_every=500
    ),
    later_steps=2000,
    out=pathlib.Path("runs/deep_pose_folder"),
)
CONFIGS = {
    "shapes": ("Keypoints of generated scenes.", SHAPES),
    "smoke": ("Seconds; does every part work?", SMOKE),
    "folder": ("Your own pictures (--data PATH, COCO's keypoints of persons).", FOLDER),
    "paper": ("AlexNet on crops of 220 px (--data coco); for accelerators.", Config()),
}
# What may differ when a run is gone on with.
FREE = (*selection.FREE, "later_steps", "n_pictures", "out")
Predict = Callable[..., Poses]  # predict(variables, batch)


def main(config: Config) -> dict[str, float]:
    """Trains stage after stage, evaluates, writes; returns the metrics of the test split."""
    begun = time.perf_counter()
    names = [f"stage{i + 1}" for i in range(config.architecture.n_stages)]
    begun -= logging.seconds(*(config.out / name for name in names))
    train, rates = with_joints(*selection.open_training(config.selection))
    val = selection.open_split(config.selection, config.selection.val_split, classes=train.classes)
    print(sources.describe(train), sources.describe(val), sep="\n", flush=True)
    n_joints = len(train.keypoint_names)
    model = deep_pose.build(
        n_joints,
        config.architecture,
        axis_name=parallel.AXIS,
        dtype=jnp.bfloat16 if config.training.bfloat16 else jnp.float32,
    )
    variables = state.initial_variables(
        jax.random.key(config.training.seed), model, canvas=config.canvases[0]
    )
    print(f"{len(names)} stages: {state.describe(variables)}", flush=True)

    errors: list[Errors] = []
    for stage, name in enumerate(names):
        if stage:
            # A stage begins as the one before: it looks at the same objects from nearer by.
            for collection in variables.values():
                if learnt := collection.get(f"stages_{stage - 1}"):
                    collection[f"stages_{stage}"] = learnt
            errors.append(measure_errors(config, model, variables, train, stage=stage - 1))
        ended = run_stage(
            config, variables, tuple(errors), model=model, train=train, rates=rates, val=val
        )
        if not ended and name != names[-1]:
            return {}
        where = config.out / name
        variables, _ = processes.on_first(lambda where=where: checkpoints.load_variables(where))
    return report(config, model, variables, train.classes, begun=begun)


def with_joints(source: Source, rates: Any) -> tuple[Source, Any]:
    """The pictures in which there is something to learn."""
    kept = [
        i
        for i, a in enumerate(source.annotations)
        if a.keypoints is not None and (a.keypoints[~(a.crowd | a.difficult), :, 2] > 0).any()
    ]
    chosen = sources.select(source, kept, name=source.name)
    return chosen, None if rates is None else rates[np.array(kept)]


def run_stage(
    config: Config,
    variables: Any,
    errors: tuple[Errors, ...],
    *,
    model: deep_pose.DeepPose,
    train: Source,
    rates: Any,
    val: Source,
) -> bool:
    """Trains one stage on the errors of those before; returns whether it is at its end."""
    chosen, options, stage = config.selection, config.training, len(errors)
    if stage:
        options = dataclasses.replace(options, steps=config.later_steps)
    out = config.out / f"stage{stage + 1}"
    log = logging.MetricsLog(out)
    batches = feeds.training(
        train,
        selection=chosen,
        options=options,
        canvases=config.canvases,
        augmentation=config.augmentation,
        rates=rates,
        with_keypoints=True,
    )
    sampled = LossOptions((stage,), errors, sample_size=config.sample_size)
    predict = compiled(model, stage=stage)

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        sheet = draw_poses(config, predict, variables, val)
        draw.save_png(out / "pictures" / f"val_{step:06d}.png", sheet)
        log.image(step, "val", sheet)
        return evaluate_poses(config, predict, variables, val)

    ended = fit.fit(
        variables,
        loss_fn=functools.partial(deep_pose.loss, model, options=sampled),
        batches=batches,
        evaluate=evaluate,
        best_metric="PCK",
        options=options,
        out=out,
        log=log,
        metadata={
            "system": "deep_pose",
            "classes": train.classes,
            "keypoints": train.keypoint_names,
            "errors": [e._asdict() for e in errors],
            # A stage is built on finished ones.
            "config": recipes.as_json(config) | {"before": config.training.steps if stage else 0},
        },
        free=FREE,
        trainable=functools.partial(deep_pose.trained_by, stages=(stage,)),
    )
    figures.training_curves(out / "curves.png", logging.read_rows(out))
    return ended


def compiled(model: deep_pose.DeepPose, *, stage: int) -> Predict:
    """Compiles the cascade up to a stage, for all devices."""
    model = model.clone(stages=model.stages[: stage + 1])

    def run(variables: Any, inputs: Any) -> Poses:
        return deep_pose.predict(model, variables, *inputs)

    mapped = parallel.parallel_map(run)
    return lambda variables, batch: jax.device_get(
        mapped(variables, (batch.images, batch.instances.boxes, batch.instances.valid))
    )


def batches_of(config: Config, source: Source) -> Iterable[Batch]:
    """All pictures of a source, once."""
    n_devices = jax.local_device_count()
    batch_size = -(-config.training.batch_size // n_devices) * n_devices
    return pipeline.iterate(
        pipeline.eval_pipeline(
            source, canvases=config.canvases, batch_size=batch_size, with_keypoints=True
        )
    )


def counted(truth: Instances) -> np.ndarray:
    """Keypoints of the objects that count; those of others are not labelled."""
    keypoints = np.array(truth.keypoints)
    keypoints[~truth.objects, :, 2] = 0
    return keypoints


def measure_errors(
    config: Config, model: deep_pose.DeepPose, variables: Any, train: Source, *, stage: int
) -> Errors:
    """Looks how a stage is wrong about training pictures, spread evenly over the set."""
    chosen = np.unique(np.linspace(0, len(train) - 1, config.n_measured).astype(int))
    part = sources.select(train, chosen.tolist(), name=f"{train.name} [measured]")
    predict, variables = compiled(model, stage=stage), parallel.replicate(variables)
    rows = []
    for batch in batches_of(config, part):
        joints = predict(variables, batch).joints[:, :, -1]
        truth = counted(batch.instances)
        boxes = jnp.asarray(batch.instances.boxes)
        sizes = deep_pose.diameters(jnp.asarray(truth), boxes, config.architecture.torso)
        rows.append([x[batch.instances.valid] for x in (joints, truth, np.asarray(sizes))])
    return pose.measure_errors(*map(np.concatenate, zip(*rows, strict=True)))


def evaluate_poses(
    config: Config, predict: Predict, variables: Any, source: Source
) -> dict[str, float]:
    """Returns the shares of joints and limbs found, on boxes of the true objects.

    PCK is at a tenth of the box's diagonal, PDJ at a fifth of the torso's diameter; PCK1, PCK2, ...
    are those after each stage.
    """

    @jax.jit
    def measure(joints: Any, truth: Any, boxes: Any) -> dict[str, pose.Counts]:
        stages = {
            f"PCK{i + 1}": pose.pck(joints[:, :, i], truth, boxes, threshold=0.1)
            for i in range(joints.shape[2])
        }
        last, torso = joints[:, :, -1], config.architecture.torso
        return {
            "PCK": stages[f"PCK{joints.shape[2]}"],
            "PDJ": pose.pdj(last, truth, torso=torso, threshold=0.2),
            "PCP": pose.pcp(last, truth, limbs=config.limbs),
        } | stages

    each = []
    for batch in batches_of(config, source):
        found = predict(variables, batch)
        each.append(measure(found.joints, counted(batch.instances), batch.instances.boxes))
    total = jax.tree.map(lambda *x: sum(x), *each)
    return {name: float(pose.mean(counts)) for name, counts in total.items()}


def draw_poses(config: Config, predict: Predict, variables: Any, source: Source) -> np.ndarray:
    """Draws objects with their true joints and those after each stage."""
    rows = []
    for batch in batches_of(config, source):
        found, truth = predict(variables, batch), counted(batch.instances)
        for i, n in zip(*np.nonzero(truth[..., 2].any(axis=2)), strict=True):
            seen = truth[i, n, :, 2:]
            poses = {"truth": truth[i, n]}
            for stage, joints in enumerate(found.joints[i, n]):
                poses[f"stage {stage + 1}"] = np.concatenate([joints, seen], axis=1)
            box = np.asarray(batch.instances.boxes[i, n])
            rows.append(objects.draw_poses(np.asarray(batch.images.pixels[i]), box, poses))
            if len(rows) == config.n_pictures:
                return draw.contact_sheet(rows, columns=2)
    return draw.contact_sheet(rows, columns=2)


def write_poses(
    path: pathlib.Path, config: Config, predict: Predict, variables: Any, source: Source
) -> None:
    """Writes a COCO results file, in pixels of the pictures; every object is as sure as another."""
    rows: list[dict[str, Any]] = []
    for batch in batches_of(config, source):
        found = predict(variables, batch)
        for i, record in enumerate(batch.records.tolist()):
            if record < 0:
                continue
            annotation = source.annotations[record]
            scale = np.array(annotation.size[::-1]) / batch.images.sizes[i][::-1]
            for n in np.flatnonzero(batch.instances.valid[i] & ~batch.instances.crowd[i]):
                points = (found.joints[i, n, -1] * scale).round(2).tolist()
                rows.append(
                    {
                        "image_id": annotation.image_id,
                        "category_id": source.category_ids[batch.instances.labels[i, n] - 1],
                        "keypoints": list(itertools.chain(*((x, y, 1) for x, y in points))),
                        "score": 1.0,
                    }
                )
    coco.write_results(path, rows)


def report(
    config: Config,
    model: deep_pose.DeepPose,
    variables: Any,
    classes: tuple[str, ...],
    *,
    begun: float,
) -> dict[str, float]:
    """Evaluates all stages on the test split, writes numbers and pictures."""
    chosen = config.selection
    test = selection.open_split(chosen, chosen.test_split, classes=classes)
    print(sources.describe(test), flush=True)
    predict = compiled(model, stage=config.architecture.n_stages - 1)
    variables = parallel.replicate(variables)
    metrics = evaluate_poses(config, predict, variables, test)
    write_poses(config.out / "poses.json", config, predict, variables, test)
    doubled = dataclasses.replace(config, n_pictures=2 * config.n_pictures)
    sheet = draw_poses(doubled, predict, variables, test)
    draw.save_png(config.out / "pictures" / "test.png", sheet)
    for name, value in metrics.items():
        print(f"{name:6} {value:.3f}")
    logging.write_results(
        config.out / "results.json",
        metrics,
        seconds=time.perf_counter() - begun,
        seed=config.training.seed,
    )
    return metrics


if __name__ == "__main__":
    recipes.run_experiment(main, CONFIGS, default="shapes", description=__doc__ or "")
