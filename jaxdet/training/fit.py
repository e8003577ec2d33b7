"""What every training script does: from a loss, batches and an evaluation to a trained run."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import optax
from tyro.conf import OmitArgPrefixes

from jaxdet.structures import Batch
from jaxdet.training import (
    checkpoints,
    logging,
    loop,
    optimizers,
    parallel,
    processes,
    profile,
    recipes,
    replay,
    schedules,
    state,
    steps,
)
from jaxdet.training.journal import DIVERGED
from jaxdet.training.logging import MetricsLog
from jaxdet.training.processes import Processes
from jaxdet.training.signals import GRACE
from jaxdet.training.state import PyTree
from jaxdet.training.steps import LossFn


class Feed(NamedTuple):
    """What a run is trained on."""

    batches: Callable[[int], Iterator[Batch]]  # From the number of the first, without end.
    names: Sequence[str]  # Of the pictures, by record; for messages.


@dataclasses.dataclass(frozen=True)
class Options:
    """Numbers of a run that every experiment has; each field is also a flag."""

    batch_size: int = 16
    """Images per update, over all devices."""
    steps: int = 1000
    """Updates."""
    n_parts: int = 1
    """Parts in which a device goes through its images: less memory, the same update. Batch norm
    sees one part at a time."""
    optimizer: Literal["sgd", "adamw", "lars", "lamb"] = "sgd"
    learning_rate: float = 0.02
    """At batch size 16; it grows with the batch."""
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    """Not applied to norms and biases."""
    clip_norm: float | None = 10.0
    """Longest gradient; None for no clipping."""
    freeze: tuple[str, ...] = ()
    """Regular expressions, such as ^backbone/: parameters with one in their path stay as they are.
    Statistics of batch norms move on."""
    rates: tuple[tuple[str, float], ...] = ()
    """Regular expressions and what the learning rate of such parameters is multiplied with."""
    layers: tuple[str, ...] = ()
    """Regular expressions of the layers that `layer_decay` is about, the first layer first."""
    layer_decay: float = 1.0
    """Share of the rate of the layer above that each of `layers` learns with."""
    ema_decay: float = 0.998
    """Of the moving average of parameters that is evaluated; 0 for none."""
    evaluate_raw: bool = False
    """Whether the parameters without average are evaluated, too: metrics raw/NAME."""
    bfloat16: bool = False
    """Whether layers compute in bfloat16; parameters, boxes and losses stay float32."""
    seed: int = 0
    evaluate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 20
    best_metric: str | None = None
    """Picks the best checkpoint; the script's choice if None."""
    lower_is_better: bool = False
    """Of `best_metric`, where one is given."""
    patience: int | None = None
    """Evaluations without a better one, after which the run ends."""
    minutes: float | None = None
    """How long this start may train; it then evaluates, saves and reports, and can be gone on
    with. Where stages are trained one after the other, each may take as long; after one that ended
    early no later one begins, and only after the last is there a report."""
    steps_now: int | None = None
    """How many updates this start may make; as `minutes`, of each stage, too."""
    explosion: float | None = None
    """Stop where the loss or the gradient is so many times its running median; above 1."""
    grace: float = GRACE
    """Seconds from SIGTERM or Ctrl-C to the end of training, whatever it is doing."""
    replay: bool = False
    """Only go through the step again at which the run diverged, and say what was not finite."""
    compilation_cache: str = ""
    """Folder of compiled programs; in JAXDET_CACHE or the user's caches if empty; or `off`."""
    profile_steps: tuple[int, int] | None = None
    """First and last update, counted from this start, that are traced: to `profile/` in the run's
    folder, and as a table of where their time goes. The first is above 1: update 1 compiles."""
    processes: OmitArgPrefixes[Processes] = Processes()

    def check(self, **later: int) -> None:
        """Raises a ValueError where numbers do not fit, before data is read.

        Args:
          **later: Updates of stages trained after the first, by the name of their flag.
        """
        make_optimizer(self)
        for name, n in later.items():
            if n <= self.warmup_steps:
                raise ValueError(
                    f"{name} must be above warmup_steps. Got {n} and {self.warmup_steps}"
                )
        if self.n_parts < 1 or self.batch_size % self.n_parts:
            raise ValueError(
                f"n_parts must divide batch_size (of each device). Got {self.n_parts} and "
                f"{self.batch_size}"
            )
        span = self.profile_steps
        for name, within, text in (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
            ("ema_decay", 0 <= self.ema_decay < 1, "0 or above, and below 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or above"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, and 1 at most"),
            ("explosion", self.explosion is None or self.explosion > 1, "above 1, or None"),
            *(
                (name, getattr(self, name) > 0, "above 0")
                for name in ("evaluate_every", "checkpoint_every", "log_every", "grace")
            ),
            *(
                (name, getattr(self, name) is None or getattr(self, name) > 0, "above 0, or None")
                for name in ("patience", "minutes", "steps_now")
            ),
            (
                "profile_steps",
                span is None or 1 < span[0] <= span[1],
                "a first step above 1 and a last one not before it, or None",
            ),
        ):
            if not within:
                raise ValueError(f"{name} must be {text}. Got {getattr(self, name)}")


# What may differ when a run is gone on with, beside what a script names.
FREE = (
    *("steps", "evaluate_every", "checkpoint_every", "log_every", "evaluate_raw"),
    *("patience", "minutes", "steps_now", "explosion", "grace", "replay", "compilation_cache"),
    "profile_steps",
    *processes.FREE,
)


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
    optimizer = {
        "sgd": optimizers.sgd,
        "adamw": optimizers.adamw,
        "lars": optimizers.lars,
        "lamb": optimizers.lamb,
    }[options.optimizer]
    return optimizer(
        schedule,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        rate=_rate(options, trainable),
    )


def _rate(options: Options, trainable: Callable[[str], bool] | None) -> Callable[[str], float]:
    """By a parameter's path, its share of the learning rate."""
    if options.layer_decay != 1 and not options.layers:
        raise ValueError(f"layer_decay needs layers. Got {options.layer_decay} and no layers")
    share = optimizers.rate_by_patterns(
        [
            *((pattern, 0.0) for pattern in options.freeze),
            *options.rates,
            *optimizers.layer_decay(options.layers, options.layer_decay),
        ]
    )
    return lambda path: share(path) if trainable is None or trainable(path) else 0.0


def _held_loss(loss_fn: LossFn, trainable: Callable[[str], bool]) -> LossFn:
    """The same loss, of which the gradients of all other parameters are not computed."""

    def loss(variables: dict[str, PyTree], batch: Batch, *, train: bool) -> Any:
        return loss_fn(state.held(variables, trainable), batch, train=train)

    return loss


def fit(
    variables: dict[str, PyTree],
    *,
    loss_fn: LossFn,
    feed: Feed,
    evaluate: Callable[[dict[str, PyTree], int], Mapping[str, float]],
    best_metric: str,
    options: Options,
    log: MetricsLog,
    config: Any,
    metadata: Mapping[str, Any],
    before: int | None = None,
    free: Sequence[str] = (),
    trainable: Callable[[str], bool] | None = None,
) -> bool:
    """Trains a run, or goes on with it, on all devices of all processes.

    Args:
      variables: What to begin with; not read where there is a checkpoint.
      loss_fn: `loss_fn(variables, batch, *, train) -> (terms, Aux)`; norms of the model sum over
        `parallel.AXIS`.
      feed: What it is trained on.
      evaluate: Metrics of (variables, step); the variables are the averaged ones, where an average
        is kept, on all devices.
      best_metric: Which of them picks the best checkpoint, the higher the better, unless the
        options say otherwise.
      options: Of the run.
      log: Of the run's folder, where config.json and checkpoints/ are written, too.
      config: The run's configuration, a dataclass. A run that was begun with another, or with other
        "classes" in its metadata, is refused.
      metadata: Of the checkpoints, beside the configuration.
      before: Updates of the stages that this one is built on, noted in the configuration; None for
        a run without stages.
      free: Names of entries of the configuration that may change, beside `FREE`.
      trainable: Says by a parameter's path whether it is updated; None for all.

    Returns:
      Whether the run is at its end. It is not where a budget ended this start: what would build on
      its variables must wait.

    Raises:
      ConfigError: Where the folder holds a run that was begun differently.
      Interrupted, TrainingDiverged: As `loop.run`.
      SystemExit: After a replay.
    """
    out, noted = log.directory, {} if before is None else {"before": before}
    metadata = {**metadata, "config": recipes.as_json(config) | noted}
    patterns = [*options.freeze, *(pattern for pattern, _ in options.rates)]
    if options.layer_decay != 1:
        patterns += options.layers
    rate, tx = _rate(options, trainable), make_optimizer(options, trainable=trainable)
    loss_fn = _held_loss(loss_fn, lambda path: rate(path) > 0)
    optimizers.check_patterns(patterns, variables["params"])
    variables = processes.on_first(lambda: jax.device_get(variables))
    first = parallel.replicate(
        state.init_state(jax.random.key(options.seed), variables, tx, ema=options.ema_decay > 0)
    )
    train_step = parallel.parallel_train_step(
        functools.partial(
            steps.train_step,
            loss_fn=loss_fn,
            tx=tx,
            ema_decay=options.ema_decay,
            n_parts=options.n_parts,
            axis_name=parallel.AXIS,
        )
    )
    saved = checkpoints.Checkpoints(out / "checkpoints", metadata=metadata)
    if saved.last_step() is not None:
        begun, now = (
            {"classes": m.get("classes")} | m["config"]
            for m in (saved.last_metadata(), json.loads(json.dumps(dict(metadata))))
        )
        # Nothing was picked by a name until there is a best checkpoint.
        picks = ("best_metric", "lower_is_better") if saved.best_step() is None else ()
        recipes.check_same_run(begun, now, free=(*FREE, *free, *picks), where=out)
        print(f"{out}: going on from step {saved.last_step()} of {options.steps}.", flush=True)

    def lost_patience() -> bool:
        misses = saved.last_metadata().get("misses", 0)
        return options.patience is not None and misses >= options.patience

    if options.replay:
        last, diverged = saved.last_step(), processes.on_first(lambda: (out / DIVERGED).is_file())
        if last is not None and not diverged and (last == options.steps or lost_patience()):
            print(f"{out}: has not diverged.", flush=True)
            if before is None:
                raise SystemExit(0)
            return True  # A later stage may have.
        gradients = functools.partial(
            steps.gradients, loss_fn=loss_fn, n_parts=options.n_parts, axis_name=parallel.AXIS
        )
        differentiate = parallel.parallel_eval_step(lambda _, now, batch: gradients(now, batch))
        lines = replay.replay(
            first,
            processes.on_first(lambda: replay.diverged_step(out)),
            step=train_step,
            gradients=lambda now, batch: differentiate(now.step, now, batch),
            batches=feed.batches,
            checkpoints=saved,
            names=feed.names,
        )
        print("\n".join(lines), flush=True)
        raise SystemExit(0)
    text = json.dumps(metadata["config"], indent=2) + "\n"
    logging.write_atomically(out / "config.json", text)

    def measure(now: state.TrainState) -> dict[str, float]:
        found = {}
        if options.evaluate_raw and now.ema:
            raw = evaluate(state.variables(now), int(now.step))
            found = {f"raw/{name}": value for name, value in raw.items()}
        # Last, so that pictures of it stay.
        return found | dict(evaluate(state.ema_variables(now), int(now.step)))

    with _profiled(train_step, options, out) as step:
        end = loop.run(
            first,
            step=step,
            batches=feed.batches,
            steps=options.steps,
            checkpoints=saved,
            log=log,
            evaluation=loop.Evaluation(
                measure,
                every=options.evaluate_every,
                best_metric=options.best_metric or best_metric,
                lower_is_better=options.best_metric is not None and options.lower_is_better,
                patience=options.patience,
            ),
            limits=loop.Limits(
                options.minutes, options.steps_now, options.explosion, grace=options.grace
            ),
            checkpoint_every=options.checkpoint_every,
            log_every=options.log_every,
        )
    no_patience = lost_patience()
    if (done := int(end.step)) < options.steps:
        by = "--patience" if no_patience else "--minutes or --steps-now; it can be gone on with"
        print(f"{out}: ended at step {done} of {options.steps} by {by}.", flush=True)
    saved.close()
    log.close()
    return done == options.steps or no_patience


def _profiled(
    step: parallel.StepFn, options: Options, out: pathlib.Path
) -> contextlib.AbstractContextManager[parallel.StepFn]:
    if options.profile_steps is None:
        return contextlib.nullcontext(step)
    first, last = options.profile_steps
    return profile.traced(step, first=first, last=last, folder=out / "profile")


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
