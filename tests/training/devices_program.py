"""Fifty steps on eight devices and on one: python devices_program.py {toy,faster_rcnn} OUT."""

import dataclasses
import functools
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import faster_rcnn_cases as cases
import toy_regression as toy

from jaxdet.systems import architectures, faster_rcnn
from jaxdet.training import optimizers, parallel, state, steps

STEPS = 50
NARROW = dataclasses.replace(
    cases.PYRAMID,
    width=8,
    n_stages=1,
    pyramid_features=8,
    anchor_sizes=((24.0,),),
    head_features=16,
)


def pictures():
    """Four pictures and their mirror images, moved by a few pixels at each step."""
    plain = jax.tree.map(np.asarray, cases.make_batch()._replace(keys=None))
    width = cases.CANVAS[1]
    images, truth = plain.images, plain.instances
    turned = truth.boxes[..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + np.array([width, 0, width, 0])
    mirrored = plain._replace(
        images=images._replace(pixels=images.pixels[:, :, ::-1]),
        instances=truth._replace(boxes=turned.astype(np.float32)),
    )
    both = jax.tree.map(lambda *x: np.concatenate(x), plain, mirrored)
    both = both._replace(positions=np.arange(8, dtype=np.int32))
    for number in range(STEPS):
        # Which pictures share a device changes, their places in the global batch do not.
        yield jax.tree.map(lambda x, n=number: np.roll(x, n, axis=0), both)


def toy_regression():
    """Its state, what its step is made of, and its batches."""
    loss = functools.partial(toy.loss, toy.Toy(parallel.AXIS))
    return toy.init(ema=False), (loss, toy.optimizer()), map(toy.batch, range(STEPS))


def small_faster_rcnn():
    """As above."""
    model = architectures.build(cases.K, NARROW, axis_name=parallel.AXIS)
    variables = state.initial_variables(jax.random.key(0), model, canvas=cases.CANVAS)
    tx = optimizers.sgd(0.02, clip_norm=5.0)
    loss = functools.partial(faster_rcnn.loss, model, options=cases.LOSS)
    return state.init_state(jax.random.key(1), variables, tx), (loss, tx), pictures()


def train(subject, wrap, n_devices):
    devices = jax.devices()[:n_devices]
    start, (loss, tx), batches = subject()
    step = functools.partial(steps.train_step, loss_fn=loss, tx=tx, axis_name=parallel.AXIS)
    step = wrap(step, devices=devices)
    now = parallel.replicate(start, devices=devices)
    curve = []
    for batch in batches:
        now, metrics = step(now, batch)
        curve.append(float(metrics["loss"]))
    leaves = jax.tree.leaves(parallel.unreplicate(now))
    return {"curve": np.array(curve)} | {f"{i:03}": leaf for i, leaf in enumerate(leaves)}


if __name__ == "__main__":
    subject = {"toy": toy_regression, "faster_rcnn": small_faster_rcnn}[sys.argv[1]]
    out = pathlib.Path(sys.argv[2])
    np.savez(out / "one.npz", **train(subject, parallel.parallel_train_step, 1))
    np.savez(out / "pmap.npz", **train(subject, parallel.parallel_train_step, 8))
    np.savez(out / "shard_map.npz", **train(subject, parallel.sharded_train_step, 8))
