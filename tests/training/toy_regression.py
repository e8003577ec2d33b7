"""A regression with batch norm, noise by image and a term that counts few images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.structures import Batch, Images, Instances
from jaxdet.training import optimizers, parallel, schedules, state, steps


class Toy(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, momentum=0.9)(x)
        return nn.Dense(1)(nn.relu(x))[:, 0]


def loss(model, variables, batch, *, train):
    x = batch.images.pixels.astype(jnp.float32).reshape(len(batch.positions), -1) / 255
    stats = {"batch_stats": variables["batch_stats"]}
    if train:
        out, stats = model.apply(variables, x, train=True, mutable=["batch_stats"])
    else:
        out = model.apply(variables, x, train=False)
    target = x[:, 0] + 0.1 * jax.vmap(jax.random.normal)(batch.keys)
    error = (out - target) ** 2
    few = batch.instances.valid.any(axis=1)
    terms = {
        "all": (error.sum(), jnp.asarray(len(x))),
        "few": (jnp.where(few, jnp.abs(out), 0.0).sum(), few.sum()),
    }
    return terms, steps.Aux({"error": (error.sum(), jnp.asarray(len(x)))}, stats["batch_stats"])


def batch(number, size=8):
    rng = np.random.default_rng(number)
    empty = np.zeros((size, 1), bool)
    return Batch(
        Images(
            rng.integers(0, 256, (size, 2, 1, 3), dtype=np.uint8), np.full((size, 2), 2, np.int32)
        ),
        Instances(
            np.zeros((size, 1, 4), np.float32),
            np.ones((size, 1), np.int32),
            np.arange(size)[:, None] < rng.integers(0, 3),  # All on the first of two devices.
            empty,
            empty,
        ),
        np.arange(size, dtype=np.int32) + size * number,
        np.arange(size, dtype=np.int32),
    )


NAMES = [f"{i}.png" for i in range(200)]  # Of the records of the first batches.


def batches(start, size=8):
    while True:
        yield batch(start, size)
        start += 1


def optimizer():
    schedule = schedules.step_schedule(0.1, steps=12, warmup_steps=2)
    return optimizers.sgd(schedule, clip_norm=5.0)


@functools.cache
def first_variables():
    example = np.zeros((8, 6), np.float32)
    return jax.jit(functools.partial(Toy().init, train=True))(jax.random.key(0), example)


def init(*, ema=True):
    return state.init_state(jax.random.key(1), first_variables(), optimizer(), ema=ema)


def step(axis_name=None, *, ema_decay=0.9, **options):
    return functools.partial(
        steps.train_step,
        loss_fn=functools.partial(loss, Toy(axis_name)),
        tx=optimizer(),
        ema_decay=ema_decay,
        axis_name=axis_name,
        **options,
    )


@functools.cache
def parallel_step():
    """One compilation for all tests that need a step on all devices."""
    return parallel.parallel_train_step(step(parallel.AXIS, loss_weights={"few": 0.5}))


def to_bytes(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(parallel.unreplicate(tree))]
