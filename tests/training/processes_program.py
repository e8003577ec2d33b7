"""What each process of `test_processes` does: python processes_program.py PART OUT N ID PORT."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import toy_regression as toy

from jaxdet import pose_predictor, predictor
from jaxdet.data.records import Annotation, Source
from jaxdet.pose_predictor import PosePredictor
from jaxdet.structures import Detections
from jaxdet.systems.deep_pose import Poses
from jaxdet.training import checkpoints, fit, journal, logging, loop, parallel, processes
from jaxdet.training import state as states

STEPS, SIZE = 9, 8
COUNT, INDEX = int(sys.argv[3]), int(sys.argv[4])


def share(batch):
    return jax.tree.map(lambda x: x[INDEX::COUNT], batch)


def batches(start):
    return map(share, toy.batches(start, SIZE))


def signalled_after(n, step):
    """The last process is asked to stop during the n-th step."""

    def stopping_step(state, batch):
        if int(state.step) == n and INDEX == COUNT - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    return stopping_step


def train(out):
    """Trains, is stopped after a few steps where there are several processes, goes on."""
    loss = toy.step(parallel.AXIS).keywords["loss_fn"]
    losses = fit.validation_losses(loss, batches=lambda: map(share, SPLIT), seed=3)
    step = parallel.parallel_train_step(toy.step(parallel.AXIS, loss_weights={"few": 0.5}))

    def evaluate(state):
        # Negative, and rounded differently in each process.
        return {"score": -losses(states.variables(state))["loss"] + 1e-3 * INDEX}

    stopped = None
    for driven in (signalled_after(3, step), step) if COUNT > 1 else (step,):
        saved = checkpoints.Checkpoints(out / "checkpoints", metadata={"classes": ["cat"]})
        log = logging.MetricsLog(out)
        try:
            state = loop.run(
                parallel.replicate(toy.init()),
                step=driven,
                batches=batches,
                steps=STEPS,
                checkpoints=saved,
                log=log,
                evaluation=loop.Evaluation(evaluate, every=4, best_metric="score"),
                checkpoint_every=4,
                log_every=1,
            )
        except loop.Interrupted as stop:
            stopped = [stop.step, stop.exit_code]
        saved.close()
        log.close()
    return parallel.unreplicate(state), stopped


def drive_with_shard_map():
    step = parallel.sharded_train_step(toy.step(parallel.AXIS, loss_weights={"few": 0.5}))
    state, data = parallel.replicate(toy.init()), batches(0)
    for _ in range(STEPS):
        state, _ = step(state, next(data))
    return parallel.unreplicate(state)


def detect(double, images):
    """Boxes that depend on all of a picture, some of them equally good."""
    total = images.pixels.sum(axis=(1, 2, 3), dtype=jnp.uint32)[:, None]
    numbers = jnp.arange(3, dtype=jnp.uint32)[None]
    scores = (4 - (total + numbers) % 4) * double / 8
    low = (total * (numbers + 1) % 7).astype(jnp.float32)[..., None]
    boxes = jnp.concatenate([low, low, low + 5, low + 9], axis=-1)
    labels = (numbers % 2 + 1 + 0 * total).astype(jnp.int32)
    return Detections(boxes, scores, labels, numbers < total % 4)


def pictures():
    """Seven pictures, upright and lying."""
    rng, none = np.random.default_rng(0), np.zeros(0, bool)
    sizes = [(20, 30), (30, 20)]
    pixels = [rng.integers(0, 9, (*sizes[i % 2], 3), np.uint8) for i in range(7)]
    no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    notes = [
        Annotation(100 - i, f"{i}", x.shape[:2], no_boxes, no_labels, none, none)
        for i, x in enumerate(pixels)
    ]
    return Source("noise", ("cat", "dog"), tuple(notes), pixels.__getitem__)


def find():
    mapped = parallel.parallel_map(detect)
    canvases = ((20, 30), (30, 20))
    finder = predictor.Predictor(mapped, ("cat", "dog"), (1, 2), canvases)
    return predictor.detect_source(
        finder, parallel.replicate(np.float32(2)), pictures(), batch_size=3
    )


def pose(box_scale, inputs):
    """Joints at the corners of boxes, the far one off by more or less."""
    _, boxes, valid = inputs
    corners = boxes.reshape(*boxes.shape[:2], 1, 2, 2)
    off = jnp.array([1.0, 1.3]).reshape(1, 1, 1, 2, 1) * box_scale
    return Poses(corners * off, valid)


def find_poses():
    """Of seven pictures with one object each: rows, shares and errors."""
    plain, none = pictures(), np.zeros(1, bool)
    notes = []
    for i, a in enumerate(plain.annotations):
        box = np.array([[1, 1, 5 + i, 9]], np.float32)
        joints = np.array([[[1, 1, 2], [5 + i, 9 + i % 3, 1]]], np.float32)
        label = np.array([1 + i % 2], np.int32)
        notes.append(
            Annotation(a.image_id, a.name, a.size, box, label, none, none)._replace(
                keypoints=joints
            )
        )
    source = dataclasses.replace(plain, annotations=tuple(notes), keypoint_names=("a", "b"))
    finder = PosePredictor(parallel.parallel_map(pose), (0, 1), ((20, 30), (30, 20)))
    arguments = finder, parallel.replicate(np.float32(1)), source
    return {
        "rows": pose_predictor.find(*arguments, batch_size=4),
        "shares": pose_predictor.measure(*arguments, batch_size=4, limbs=((0, 1),)),
        "errors": pose_predictor.measure_errors(*arguments, batch_size=4),
    }


def talk():
    """What the processes say to each other."""
    long = "x" * 100
    processes.CHUNK = 64  # Several messages.
    told = {
        "gathered": processes.gather((INDEX, long * INDEX)),
        "first": processes.on_first(lambda: (INDEX, np.float32(-0.0), long)),
        "records": journal.all_records([INDEX, INDEX + COUNT], [10 + INDEX, 20 + INDEX]),
    }
    for name, error in (("known", ValueError("no such file")), ("own", loop.Interrupted(3, 15))):
        try:
            processes.on_first(lambda error=error: (_ for _ in ()).throw(error))
        except Exception as raised:
            told[name] = f"{type(raised).__name__}: {raised}"
    votes = processes.Votes()
    told["votes"] = [votes(vote if INDEX == COUNT - 1 else 0) for vote in (0, 15, 0, 0)]
    return told


def replay(out):
    """What is said of a step at which a run diverged, when it is looked at again."""
    loss = toy.step(parallel.AXIS).keywords["loss_fn"]

    def diverging(variables, batch, *, train):
        terms, aux = loss(variables, batch, train=train)
        total, count = terms["few"]
        bad = (batch.records >= 3 * SIZE).any()
        return terms | {"few": (jnp.where(bad, jnp.nan, total), count)}, aux

    options = fit.Options(batch_size=SIZE, steps=9, warmup_steps=1, checkpoint_every=2)
    said = io.StringIO()
    for again in (False, True):
        # Other processes have a new folder at each start.
        where = out if processes.is_first() else out / f"{again}"
        with (
            contextlib.redirect_stdout(said),
            contextlib.suppress(loop.TrainingDiverged, SystemExit),
        ):
            fit.fit(
                toy.first_variables(),
                loss_fn=diverging,
                feed=fit.Feed(batches, toy.NAMES),
                evaluate=lambda variables, step: {"score": 0.0},
                best_metric="score",
                options=dataclasses.replace(options, replay=again),
                log=logging.MetricsLog(where),
                config=processes.Processes(),
                metadata={"classes": ["cat"]},
            )
    return said.getvalue().splitlines()


def main(part, out, port):
    options = processes.Processes()
    if COUNT > 1:
        options = processes.Processes(f"localhost:{port}", COUNT, INDEX)
    with processes.together(options, out=out / "run") as folder:
        if part == "fail":
            jax.block_until_ready(processes.gather(0))
            if INDEX == 0:
                raise ValueError("The first process fails.")
            processes.gather(0)
        print("said by", INDEX)
        state, stopped = train(folder)
        told = {"stopped": stopped, "folder": str(folder), "talk": talk(), "found": find()}
        told["poses"] = find_poses()
        told["replayed"] = replay(folder / "diverging")
        np.savez(out / f"pmap_{COUNT}_{INDEX}.npz", *jax.tree.leaves(state))
        np.savez(out / f"shard_{COUNT}_{INDEX}.npz", *jax.tree.leaves(drive_with_shard_map()))
        (out / f"told_{COUNT}_{INDEX}.json").write_text(json.dumps(told, default=str))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4 // COUNT)
    SPLIT = [toy.batch(number, SIZE) for number in (20, 21)]
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[5])
