"""A hundred thousand steps: do memory and step time stay what they are?

Does      trains a network of two layers on 16 x 16 pictures with all that a run has: the input
          pipeline, the compiled step on all devices, an average, logs, evaluations and checkpoints
Run       python benchmarks/soak.py
          python benchmarks/soak.py --steps 2000
Columns   RSS: memory of the process, megabytes; arrays, MB: what JAX holds on devices;
          step: median time from one step to the next, milliseconds.
Ends      with code 1 where the last tenth needs over 5 % more memory than the second, or holds more
          arrays. Times of a machine that does other things vary; they are shown only.
"""

import dataclasses
import functools
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.data import pipeline
from jaxdet.data.augment import Augmentation
from jaxdet.data.records import Annotation, Source
from jaxdet.structures import Batch, Images
from jaxdet.training import (
    checkpoints,
    fit,
    logging,
    loop,
    optimizers,
    parallel,
    recipes,
    state,
    steps,
)

CANVAS = (16, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    """How long."""

    steps: int = 100_000
    batch_size: int = 4


class Network(nn.Module):
    """Says which of two colours a picture has."""

    @nn.compact
    def __call__(self, images: Images) -> jax.Array:
        """Returns two logits for each picture."""
        x = nn.relu(nn.Conv(8, (3, 3))(images.pixels / 255.0))
        return nn.Dense(2)(x.mean((1, 2)))


def loss(model: Network, variables: Any, batch: Batch, *, train: bool) -> Any:
    """Returns the sum of the cross entropies, and their number."""
    del train
    labels = batch.instances.labels[:, 0] - 1
    errors = optax.softmax_cross_entropy_with_integer_labels(
        model.apply(variables, batch.images), labels
    )
    real = batch.records >= 0
    return {"class": (jnp.where(real, errors, 0).sum(), real.sum())}, steps.Aux({}, {})


def pictures(n: int = 64) -> Source:
    """Reddish and bluish noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (n, *CANVAS, 3)).astype(np.uint8)
    pixels[::2, ..., 0] += 50
    pixels[1::2, ..., 2] += 50
    box, no = np.array([[0, 0, 16, 16]], np.float32), np.zeros(1, bool)
    notes = tuple(
        Annotation(i, f"{i}", CANVAS, box, np.array([i % 2 + 1], np.int32), no, no)
        for i in range(n)
    )
    return Source("noise", ("red", "blue"), notes, pixels.__getitem__)


@dataclasses.dataclass
class Meter:
    """Looks at the process at the end of each tenth of a run."""

    n_steps: int
    rows: list[tuple[float, int, float, float]] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.last = time.perf_counter()

    def tick(self) -> None:
        """Takes the time of a step; at the end of a tenth, looks."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        if len(self.seconds) < self.n_steps // 10:
            return
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        arrays = jax.live_arrays()
        row = (
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(arrays),
            sum(x.nbytes for x in arrays) / 1e6,
            1e3 * statistics.median(self.seconds),
        )
        self.rows.append(row)
        self.seconds.clear()
        share = f"{10 * len(self.rows)} %"
        print(f"{share:>6}{row[0]:10.1f}{row[1]:8}{row[2]:10.3f}{row[3]:10.3f}", flush=True)

    def is_flat(self) -> bool:
        """Whether the last tenth needs what the early ones did; the first one fills caches."""
        _, *early, last = (self.rows[i] for i in (0, 1, 2, 3, 4, -1))
        fewest = [min(column) for column in zip(*early, strict=True)]
        return last[0] < 1.05 * fewest[0] and last[1] <= fewest[1] and last[2] <= fewest[2]


def train(config: Config, out: pathlib.Path) -> Meter:
    """Runs the loop in a folder."""
    source, model = pictures(), Network()
    loss_fn = functools.partial(loss, model)
    tx = optimizers.sgd(0.01)
    variables = state.initial_variables(jax.random.key(0), model, canvas=CANVAS)
    first = parallel.replicate(state.init_state(jax.random.key(0), variables, tx, ema=True))
    step = parallel.parallel_train_step(
        functools.partial(
            steps.train_step, loss_fn=loss_fn, tx=tx, ema_decay=0.99, axis_name=parallel.AXIS
        )
    )
    read = functools.partial(pipeline.iterate, threads=1)
    of_batch = {"canvases": (CANVAS,), "batch_size": config.batch_size}
    batches = pipeline.train_pipeline(source, seed=0, augmentation=Augmentation(), **of_batch)
    split = pipeline.eval_pipeline(source, **of_batch)
    losses = fit.validation_losses(loss_fn, batches=functools.partial(read, split), seed=0)
    meter = Meter(config.steps)

    def metered(now: state.TrainState, batch: Batch) -> Any:
        result = step(now, batch)
        meter.tick()
        return result

    log, saved = logging.MetricsLog(out), checkpoints.Checkpoints(out / "checkpoints")
    loop.run(
        first,
        step=metered,
        batches=functools.partial(read, batches),
        steps=config.steps,
        checkpoints=saved,
        log=log,
        evaluation=loop.Evaluation(
            lambda now: losses(state.ema_variables(now)),
            every=config.steps // 20,
            best_metric="loss",
            lower_is_better=True,
        ),
        checkpoint_every=config.steps // 20,
        log_every=100,
        progress=False,
    )
    log.close()
    saved.close()
    return meter


def main(config: Config) -> None:
    """Trains, measures, prints."""
    if config.steps < 20:
        raise ValueError(f"--steps must be 20 or more. Got {config.steps}.")
    print(f"jax {jax.__version__}, {jax.device_count()} {jax.devices()[0].platform}")
    print(f"{'done':>6}{'RSS MB':>10}{'arrays':>8}{'MB':>10}{'step ms':>10}")
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        meter = train(config, pathlib.Path(folder))
    print(f"{config.steps} steps in {(time.perf_counter() - begun) / 60:.1f} minutes")
    if not meter.is_flat():
        raise SystemExit("Memory grew.")


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
