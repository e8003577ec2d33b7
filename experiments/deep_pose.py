"""DeepPose: where are the joints of an object, first from its box, then from around each joint?

Source    Toshev & Szegedy 2014 (arXiv:1312.4659v3).
Expected  shapes: PCK at a tenth of the diagonal on the test split 0.820, 0.791, 0.784 after one
          stage and 0.828, 0.807, 0.796 after two, for seeds 0, 1, 2; 11 minutes each, beside other
          work on two cores
Run       python experiments/deep_pose.py
          python experiments/deep_pose.py folder --data PATH
Check     python experiments/deep_pose.py smoke
Writes    runs/NAME/: stage1/, stage2/, ... (each with config.json, metrics.jsonl, tensorboard/,
          checkpoints/{last,best}/, curves.png, and pictures/ of poses after each stage beside the
          truth), pictures/test.png, poses.json (a COCO results file of keypoints), results.json;
          the best checkpoint of the last stage holds all of them. Joints are looked for in boxes
          that are given, so predict.py and evaluate.py do not read it
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from tyro.conf import OmitArgPrefixes

from jaxdet import feeds, pose_predictor, predictor
from jaxdet.data import object_pictures, selection, sources
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Source
from jaxdet.data.selection import Selection
from jaxdet.features.networks import Network
from jaxdet.metrics import coco
from jaxdet.metrics.pose import Errors
from jaxdet.pose_predictor import PosePredictor
from jaxdet.systems import deep_pose
from jaxdet.systems.deep_pose import Architecture, LossOptions
from jaxdet.training import checkpoints, fit, logging, parallel, processes, recipes, state
from jaxdet.viz import draw, figures


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


def main(config: Config) -> dict[str, float]:
    """Trains stage after stage, evaluates, writes; returns the metrics of the test split."""
    begun = time.perf_counter()
    if config.architecture.n_stages > 1:
        config.training.check(later_steps=config.later_steps)
    names = [f"stage{i + 1}" for i in range(config.architecture.n_stages)]
    begun -= logging.seconds(*(config.out / name for name in names))
    train, rates, val = selection.open_parts(config.selection)
    check_joints(config, train)
    train, kept = object_pictures.with_joints(train)
    val, _ = object_pictures.with_joints(val)
    data = selection.Parts(train, None if rates is None else rates[kept], val)
    print(sources.describe(train), sources.describe(val), sep="\n", flush=True)
    print(describe_joints(config, train), flush=True)
    model = deep_pose.build(
        len(train.keypoint_names),
        config.architecture,
        axis_name=parallel.AXIS,
        dtype=jnp.bfloat16 if config.training.bfloat16 else jnp.float32,
    )
    variables = state.initial_variables(
        jax.random.key(config.training.seed), model, canvas=config.canvases[0]
    )
    print(f"{len(names)} stages: {state.describe(variables)}", flush=True)

    # Each sees with the stages up to its own.
    finders = [
        pose_predictor.compile_stages(model, n_stages=i + 1, canvases=config.canvases)
        for i in range(len(names))
    ]
    errors: list[Errors] = []
    for stage, name in enumerate(names):
        if stage:
            # A stage begins as the one before: it looks at the same objects from nearer by.
            for collection in variables.values():
                if learnt := collection.get(f"stages_{stage - 1}"):
                    collection[f"stages_{stage}"] = learnt
            errors.append(
                pose_predictor.measure_errors(
                    finders[stage - 1],
                    parallel.replicate(variables),
                    predictor.spread(train, config.n_measured),
                    batch_size=config.training.batch_size,
                )
            )
        ended = run_stage(
            config,
            variables,
            tuple(errors),
            model=model,
            finder=finders[stage],
            data=data,
        )
        if not ended and name != names[-1]:
            return {}
        where = config.out / name
        variables, _ = processes.on_first(lambda where=where: checkpoints.load_variables(where))
    return report(config, finders[-1], variables, train.classes, begun=begun)


def check_joints(config: Config, source: Source) -> None:
    """Raises where the configuration names joints that the data has not."""
    n_joints = len(source.keypoint_names)
    if not n_joints:
        raise ValueError(
            f"{source.name}: has no keypoints. With COCO's files, --format coco_keypoints reads "
            "annotations/person_keypoints_*.json."
        )
    for flag, pairs in (
        ("--architecture.torso", (config.architecture.torso,)),
        ("--limbs", config.limbs),
    ):
        if any(not 0 <= joint < n_joints for joint in itertools.chain(*pairs)):
            raise ValueError(
                f"{flag} must be numbers of the {n_joints} keypoints of {source.name}, from 0: "
                f"{', '.join(source.keypoint_names)}. Got {pairs}"
            )


def describe_joints(config: Config, source: Source) -> str:
    """What the numbers of joints stand for, and whether mirrored pictures fit."""
    names, augmentation = source.keypoint_names, config.augmentation
    torso, limbs = (
        ", ".join(f"{names[a]} to {names[b]}" for a, b in pairs)
        for pairs in ((config.architecture.torso,), config.limbs)
    )
    lines = [f"torso: {torso}; limbs: {limbs}"]
    mirrored = augmentation.horizontal_flip or augmentation.vertical_flip
    if mirrored and not source.keypoint_pairs:
        lines.append(
            "No joints are known to be left and right of each other: mirrored pictures keep their "
            "numbers. If there are such joints, --augmentation.horizontal-flip 0."
        )
    return "\n".join(lines)


def run_stage(
    config: Config,
    variables: Any,
    errors: tuple[Errors, ...],
    *,
    model: deep_pose.DeepPose,
    finder: PosePredictor,
    data: selection.Parts,
) -> bool:
    """Trains one stage on the errors of those before; returns whether it is at its end."""
    options, stage, (train, rates, val) = config.training, len(errors), data
    if stage:
        options = dataclasses.replace(options, steps=config.later_steps)
    out = config.out / f"stage{stage + 1}"
    log = logging.MetricsLog(out)
    feed = feeds.training(
        train,
        selection=config.selection,
        options=options,
        canvases=config.canvases,
        augmentation=config.augmentation,
        rates=rates,
        with_keypoints=True,
    )
    sampled = LossOptions((stage,), errors, sample_size=config.sample_size)
    size = options.batch_size

    def evaluate(variables: dict[str, Any], step: int) -> dict[str, float]:
        sheet = pose_predictor.contact_sheet(
            finder, variables, val, batch_size=size, n_pictures=config.n_pictures
        )
        draw.save_png(out / "pictures" / f"val_{step:06d}.png", sheet)
        log.image(step, "val", sheet)
        return pose_predictor.measure(finder, variables, val, batch_size=size, limbs=config.limbs)

    ended = fit.fit(
        variables,
        loss_fn=functools.partial(deep_pose.loss, model, options=sampled),
        feed=feed,
        evaluate=evaluate,
        best_metric="PCK",
        options=options,
        log=log,
        config=config,
        metadata={
            "system": "deep_pose",
            "architecture": dataclasses.asdict(config.architecture),
            "classes": train.classes,
            "keypoints": train.keypoint_names,
            "errors": [e._asdict() for e in errors],
        },
        before=config.training.steps if stage else 0,
        free=FREE,
        trainable=functools.partial(deep_pose.trained_by, stages=(stage,)),
    )
    figures.training_curves(out / "curves.png", logging.read_rows(out))
    return ended


def report(
    config: Config,
    finder: PosePredictor,
    variables: Any,
    classes: tuple[str, ...],
    *,
    begun: float,
) -> dict[str, float]:
    """Evaluates all stages on the test split, writes numbers and pictures."""
    chosen, size = config.selection, config.training.batch_size
    test = selection.open_split(chosen, chosen.test_split, classes=classes)
    print(sources.describe(test), flush=True)
    variables = parallel.replicate(variables)
    metrics = pose_predictor.measure(finder, variables, test, batch_size=size, limbs=config.limbs)
    rows = pose_predictor.find(finder, variables, test, batch_size=size)
    coco.write_results(config.out / "poses.json", rows)
    sheet = pose_predictor.contact_sheet(
        finder, variables, test, batch_size=size, n_pictures=2 * config.n_pictures
    )
    draw.save_png(config.out / "pictures" / "test.png", sheet)
    for name, value in metrics.items():
        print(f"{name:6} {value:.3f}")
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
