"""What every training script does: from a loss, batches and an evaluation to a trained run."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import optax

from jaxdet.structures import Batch
from jaxdet.training import checkpoints, logging, loop, parallel, recipes, schedules, state, steps
from jaxdet.training.logging import MetricsLog
from jaxdet.training.state import PyTree
from jaxdet.training.steps import LossFn


@dataclasses.dataclass(frozen=True)
class Options:
    """Numbers of a run that every experiment has; each field is also a flag."""

    batch_size: int = 16
    """Images per update, over all devices."""
    steps: int = 1000
    """Updates."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    """At batch size 16; it grows with the batch."""
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    """Not applied to norms and biases."""
    clip_norm: float | None = 10.0
    """Longest gradient; None for no clipping."""
    ema_decay: float = 0.998
    """Of the moving average of parameters that is evaluated; 0 for none."""
    bfloat16: bool = False
    """Whether layers compute in bfloat16; parameters, boxes and losses stay float32."""
    seed: int = 0
    evaluate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 20


# What may differ when a run is gone on with, beside what a script names.
FREE = ("steps", "evaluate_every", "checkpoint_every", "log_every")


def make_optimizer(
    options: Options, *, trainable: Callable[[str], bool] | None = None
) -> optax.GradientTransformation:
    """Builds the optimizer and its schedule.

    Args:
      options: Of the run.
      trainable: Says by a parameter's path whether it is updated; None for all.
    """
    peak = schedules.scaled(options.learning_rate, options.batch_size)
    make = {"cosine": schedules.cosine_schedule, "step": schedules.step_schedule}[options.schedule]
    schedule = make(peak, steps=options.steps, warmup_steps=options.warmup_steps)
    optimizer = {"sgd": schedules.sgd, "adamw": schedules.adamw}[options.optimizer]
    return optimizer(
        schedule,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        trainable=trainable,
    )


def fit(
    variables: dict[str, PyTree],
    *,
    loss_fn: LossFn,
    batches: Callable[[int], Iterator[Batch]],
    evaluate: Callable[[dict[str, PyTree], int], Mapping[str, float]],
    best_metric: str,
    options: Options,
    out: pathlib.Path,
    log: MetricsLog,
    metadata: Mapping[str, Any],
    free: Sequence[str] = (),
    trainable: Callable[[str], bool] | None = None,
) -> None:
    """Trains a run, or goes on with it, on all local devices.

    Args:
      variables: What to begin with; not read where there is a checkpoint.
      loss_fn: `loss_fn(variables, batch, *, train) -> (terms, Aux)`; norms of the model sum over
        `parallel.AXIS`.
      batches: From the number of a batch, an iterator that begins with that batch.
      evaluate: Metrics of (variables, step); the variables are the averaged ones, where an average
        is kept, on all devices.
      best_metric: Which of them picks the best checkpoint, the higher the better.
      options: Of the run.
      out: The run's folder: config.json and checkpoints/ are written here.
      log: Of this folder.
      metadata: Of the checkpoints; "config" in it is the run's configuration. A run that was begun
        with another, or with other "classes", is refused.
      free: Names of entries of the configuration that may change, beside `FREE`.
      trainable: Says by a parameter's path whether it is updated; None for all.

    Raises:
      ConfigError: Where the folder holds a run that was begun differently.
      Interrupted, TrainingDiverged: As `loop.run`.
    """
    tx = make_optimizer(options, trainable=trainable)
    first = parallel.replicate(
        state.init_state(jax.random.key(options.seed), variables, tx, ema=options.ema_decay > 0)
    )
    train_step = parallel.parallel_train_step(
        functools.partial(
            steps.train_step,
            loss_fn=loss_fn,
            tx=tx,
            ema_decay=options.ema_decay,
            axis_name=parallel.AXIS,
        )
    )
    saved = checkpoints.Checkpoints(out / "checkpoints", metadata=metadata)
    if saved.last_step() is not None:
        begun, now = (
            {"classes": m.get("classes")} | m["config"]
            for m in (saved.last_metadata(), json.loads(json.dumps(dict(metadata))))
        )
        recipes.check_same_run(begun, now, free=(*FREE, *free), where=out)
        print(f"{out}: going on from step {saved.last_step()} of {options.steps}.", flush=True)
    text = json.dumps(metadata["config"], indent=2) + "\n"
    logging.write_atomically(out / "config.json", text)
    loop.run(
        first,
        step=train_step,
        batches=batches,
        steps=options.steps,
        checkpoints=saved,
        log=log,
        evaluate=lambda now: evaluate(state.ema_variables(now), int(now.step)),
        best_metric=best_metric,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
    )
    saved.close()
    log.close()


def validation_losses(
    loss_fn: LossFn, *, batches: Callable[[], Iterable[Batch]], seed: int
) -> Callable[[dict[str, PyTree]], dict[str, float]]:
    """Returns a function from variables to the means of the losses over a split.

    Args:
      loss_fn: As in `fit`.
      batches: All batches of the split, anew at each call.
      seed: The same boxes are sampled at each evaluation.
    """
    step = parallel.parallel_eval_step(
        functools.partial(steps.eval_step, loss_fn=loss_fn, axis_name=parallel.AXIS)
    )
    key = jax.random.key(seed)
    return lambda variables: steps.evaluate_losses(key, step, variables, batches())
