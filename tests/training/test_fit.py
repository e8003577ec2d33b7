"""A whole run from a loss, batches and an evaluation."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest
import toy_regression as toy

from jaxdet.training import checkpoints, fit, logging, loop, parallel, recipes, state, steps

OPTIONS = fit.Options(
    batch_size=8, steps=4, warmup_steps=1, evaluate_every=2, checkpoint_every=2, log_every=1
)
FEED = fit.Feed(toy.batches, toy.NAMES)
LOSS = functools.partial(toy.loss, toy.Toy(parallel.AXIS))


def evaluate(variables, step):
    return {"size": float(np.abs(variables["params"]["Dense_1"]["kernel"]).sum()), "at": step}


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    steps: int = 0
    color: int = 0
    sides: tuple[int, ...] = (1, 2)


def run(out, options=OPTIONS, *, classes=("a",), config=None, **changes):
    arguments = {"best_metric": "size", "evaluate": evaluate, "loss_fn": LOSS, "feed": FEED}
    arguments |= changes
    fit.fit(
        toy.first_variables(),
        options=options,
        log=logging.MetricsLog(out),
        config=config or Config(options.seed),
        metadata={"classes": list(classes)},
        **arguments,
    )
    return checkpoints.load_variables(out / "checkpoints" / "last")


@pytest.mark.parametrize("changes", [{}, {"n_parts": 2, "optimizer": "lars"}], ids=str)
def test_is_the_loop_over_the_step(tmp_path, changes):
    """Beside a loop written out."""
    options = dataclasses.replace(OPTIONS, **changes)
    variables, metadata = run(tmp_path, options)
    tx = fit.make_optimizer(options)
    now = state.init_state(jax.random.key(0), toy.first_variables(), tx, ema=True)
    step = jax.jit(
        functools.partial(
            steps.train_step,
            loss_fn=functools.partial(toy.loss, toy.Toy()),
            tx=tx,
            ema_decay=OPTIONS.ema_decay,
            n_parts=options.n_parts,
        )
    )
    # Batch norm sees the first halves of both devices, then the second ones.
    order = [0, 1, 4, 5, 2, 3, 6, 7] if options.n_parts == 2 else list(range(8))
    for number in range(options.steps):
        now, _ = step(now, jax.tree.map(lambda x: x[order], toy.batch(number)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, variables["params"], jax.device_get(state.ema_variables(now)["params"]))
    assert metadata["step"] == 4 and metadata["classes"] == ["a"]
    assert metadata["config"] == {"seed": 0, "steps": 0, "color": 0, "sides": [1, 2]}
    assert json.loads((tmp_path / "config.json").read_text()) == metadata["config"]
    seen = [row["eval/at"] for row in logging.read_rows(tmp_path) if "eval/at" in row]
    assert seen == [2, 4]


def test_goes_on_where_it_stopped(tmp_path):
    whole, _ = run(tmp_path / "whole")
    calls = []

    def broken(start):
        calls.append(start)
        yield from (toy.batch(n) for n in range(start, 3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_with(tmp_path / "cut", broken)
    assert calls == [0]
    again, _ = run(tmp_path / "cut")
    assert toy.to_bytes(whole) == toy.to_bytes(again)


def fit_with(out, batches):
    fit.fit(
        toy.first_variables(),
        loss_fn=LOSS,
        feed=fit.Feed(batches, toy.NAMES),
        evaluate=evaluate,
        best_metric="size",
        options=OPTIONS,
        log=logging.MetricsLog(out),
        config=Config(),
        metadata={"classes": ["a"]},
    )


def test_refuses_another_run(tmp_path):
    run(tmp_path)
    with pytest.raises(recipes.ConfigError, match="seed: 0 -> 1"):
        run(tmp_path, dataclasses.replace(OPTIONS, seed=1))
    with pytest.raises(recipes.ConfigError, match="classes"):
        run(tmp_path, classes=("b",))
    with pytest.raises(recipes.ConfigError, match="color"):
        run(tmp_path, config=Config(color=1))
    with pytest.raises(recipes.ConfigError, match="before: None -> 4"):
        run(tmp_path, before=4)
    run(tmp_path, config=Config(steps=7, color=1), free=("color",))


def test_a_stage_notes_what_it_is_built_on(tmp_path):
    _, metadata = run(tmp_path, before=0)
    assert metadata["config"]["before"] == 0
    with pytest.raises(recipes.ConfigError, match="before: 0 -> 4"):
        run(tmp_path, before=4)


def test_freezes_what_is_not_trainable(tmp_path):
    variables, _ = run(tmp_path, trainable=lambda path: not path.startswith("Dense_0/"))
    before = toy.first_variables()["params"]
    np.testing.assert_array_equal(
        variables["params"]["Dense_0"]["kernel"], before["Dense_0"]["kernel"]
    )
    assert (variables["params"]["Dense_1"]["kernel"] != before["Dense_1"]["kernel"]).any()


def moved(variables):
    return {
        name: bool((variables["params"][name]["kernel"] != kernel["kernel"]).any())
        for name, kernel in toy.first_variables()["params"].items()
        if "kernel" in kernel
    }


def test_patterns_freeze_and_slow_down(tmp_path):
    frozen = dataclasses.replace(OPTIONS, freeze=("^Dense_0/",))
    assert moved(run(tmp_path / "a", frozen)[0]) == {"Dense_0": False, "Dense_1": True}
    params = {"low": {"w": np.ones(2, np.float32)}, "head": {"w": np.ones(2, np.float32)}}
    options = dataclasses.replace(
        OPTIONS, rates=(("head", 3.0),), layers=("^low/",), layer_decay=0.5, warmup_steps=0
    )
    tx = fit.make_optimizer(options)
    updates, _ = tx.update(params, tx.init(params), params)
    ratio = updates["head"]["w"] / updates["low"]["w"]
    np.testing.assert_allclose(ratio, 6.0, rtol=1e-6)
    for changes, message in (
        ({"freeze": ("Dense_7",)}, "no parameter has 'Dense_7'"),
        ({"rates": (("Dens_0", 1.0),)}, "no parameter has 'Dens_0'"),
        ({"layer_decay": 0.5}, "layer_decay needs layers"),
        ({"layer_decay": 0.5, "layers": ("conv1",)}, "no parameter has 'conv1'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "b", dataclasses.replace(OPTIONS, **changes))


def test_gradients_of_frozen_parameters_are_not_computed(tmp_path):
    """Nor are they part of the norm that is logged and watched."""
    run(tmp_path, dataclasses.replace(OPTIONS, freeze=("^Dense_0/", "^BatchNorm_0/")))
    first = state.init_state(
        jax.random.key(0), toy.first_variables(), fit.make_optimizer(OPTIONS), ema=False
    )
    loss = functools.partial(toy.loss, toy.Toy())
    grads, _, _ = steps.gradients(first, toy.batch(0), loss_fn=loss)
    want = optax.tree.norm(grads["Dense_1"])
    assert want < 0.9 * optax.tree.norm(grads)
    got = next(row["grad_norm"] for row in logging.read_rows(tmp_path) if row["step"] == 1)
    assert got == pytest.approx(float(want), rel=1e-5)

    def cost(loss_fn):
        step = functools.partial(steps.gradients, loss_fn=loss_fn)
        return jax.jit(step).lower(first, toy.batch(0)).compile().cost_analysis()["flops"]

    assert cost(fit._held_loss(loss, lambda path: path.startswith("Dense_1"))) < 0.9 * cost(loss)


def test_a_metric_that_there_is_not_can_be_corrected(tmp_path):
    with pytest.raises(ValueError, match=r"best_metric must be one of \['at', 'size'\]. Got 'AP'"):
        run(tmp_path, dataclasses.replace(OPTIONS, best_metric="AP"))
    run(tmp_path, dataclasses.replace(OPTIONS, best_metric="size"))


def test_a_run_that_patience_ended_has_not_diverged(tmp_path, capsys):
    """A stage built on it is looked at; without stages that is all there is to say."""
    options = dataclasses.replace(OPTIONS, steps=20, patience=1)
    falling = {"evaluate": lambda variables, step: {"size": -float(step)}, "before": 0}
    run(tmp_path, options, **falling)
    assert logging.read_rows(tmp_path)[-1]["step"] < 20
    run(tmp_path, dataclasses.replace(options, replay=True), **falling)
    assert "has not diverged" in capsys.readouterr().out
    run(tmp_path / "alone")
    with pytest.raises(SystemExit):
        run(tmp_path / "alone", dataclasses.replace(OPTIONS, replay=True))
    assert "has not diverged" in capsys.readouterr().out


def test_evaluates_with_and_without_the_average(tmp_path):
    calls = []

    def measured(variables, step):
        calls.append(jax.device_get(variables["params"]["Dense_1"]["kernel"]))
        return evaluate(variables, step)

    variables, _ = run(tmp_path, dataclasses.replace(OPTIONS, evaluate_raw=True), evaluate=measured)
    last = logging.read_rows(tmp_path)[-1]
    np.testing.assert_array_equal(calls[-1], variables["params"]["Dense_1"]["kernel"])
    for name, kernel in zip(("eval/raw/size", "eval/size"), calls[-2:], strict=True):
        assert last[name] == pytest.approx(np.abs(kernel).sum())
    assert last["eval/raw/size"] != last["eval/size"] and len(calls) == 4


def test_the_best_is_what_the_options_say(tmp_path):
    run(tmp_path / "a", dataclasses.replace(OPTIONS, best_metric="at"))
    assert checkpoints.read_metadata(tmp_path / "a")["step"] == 4
    options = dataclasses.replace(OPTIONS, best_metric="at", lower_is_better=True, patience=1)
    run(tmp_path / "b", dataclasses.replace(options, steps=9))
    assert checkpoints.read_metadata(tmp_path / "b")["step"] == 2
    assert checkpoints.read_metadata(tmp_path / "b" / "checkpoints" / "last")["step"] == 4


def test_a_budget_says_so(tmp_path, capsys):
    options = dataclasses.replace(OPTIONS, steps_now=3)
    _, metadata = run(tmp_path, options)
    assert metadata["step"] == 3 and "ended at step 3 of 4" in capsys.readouterr().out
    _, metadata = run(tmp_path, options)
    assert metadata["step"] == 4 and "ended" not in capsys.readouterr().out


def planted(kind):
    """Batches and a loss that go wrong at step 4, in the second of two checkpoints' steps."""

    def loss(variables, batch, *, train):
        terms, aux = LOSS(variables, batch, train=train)
        total, count = terms["few"]
        bad = (batch.records // 8 == 3).any()
        slope = jax.numpy.where(bad, 0.0, 1.0) * variables["params"]["Dense_1"]["kernel"][0, 0]
        extra = {
            "picture": batch.instances.boxes.sum(),
            "loss": jax.numpy.log(jax.numpy.where(bad, -1.0, 1.0)),
            "gradient": jax.numpy.sqrt(slope**2),  # Finite itself; its slope is 0 / 0.
        }
        return terms | {"few": (total + extra[kind], count)}, aux

    def batches(start):
        for batch in toy.batches(start):
            if kind == "picture" and batch.records[0] == 24:
                boxes = batch.instances.boxes.copy()
                boxes[5] = np.nan
                batch = batch._replace(instances=batch.instances._replace(boxes=boxes))
            yield batch

    return {"loss_fn": loss, "feed": fit.Feed(batches, toy.NAMES)}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("picture", "the batch: instances/boxes (4 of 32)"),
        ("loss", "the losses (sum, count): loss/few/0 (1 of 1)"),
        ("gradient", "the gradient: Dense_1/kernel (1 of 4)"),
    ],
)
def test_replays_the_step_that_diverged(tmp_path, capsys, kind, wanted):
    options = dataclasses.replace(OPTIONS, steps=9, checkpoint_every=2)
    with pytest.raises(ValueError, match="has not diverged"):
        run(tmp_path, dataclasses.replace(options, replay=True), **planted(kind))
    with pytest.raises(loop.TrainingDiverged, match="after step 4"):
        run(tmp_path, options, **planted(kind))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(tmp_path, dataclasses.replace(options, replay=True), **planted(kind))
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("Step 4 again, from the checkpoint of step 2.")
    pictures = ", ".join(f"{i}.png (record {i})" for i in range(24, 32))
    assert lines[begin + 1] == f"Pictures: {pictures}."
    assert lines[begin + 2] == f"Not finite in {wanted}."


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_first_update_is_of_the_schedule(optimizer, schedule):
    """Adam's first update is the rate; momentum's is the rate times the gradient."""
    options = fit.Options(
        optimizer=optimizer,
        schedule=schedule,
        learning_rate=0.4,
        batch_size=4,
        warmup_steps=0,
        weight_decay=0.0,
        clip_norm=None,
    )
    tx = fit.make_optimizer(options)
    params = {"w": np.ones(2, np.float32)}
    updates, _ = tx.update({"w": np.full(2, 3.0, np.float32)}, tx.init(params), params)
    want = -0.4 * 4 / 16 * (1 if optimizer == "adamw" else 3)
    np.testing.assert_allclose(updates["w"], want, rtol=1e-5)


def test_validation_losses_are_means_over_all_batches():
    losses = fit.validation_losses(LOSS, batches=lambda: [toy.batch(0), toy.batch(1)], seed=3)
    got = losses(toy.first_variables())
    loss = functools.partial(toy.loss, toy.Toy())
    sums = {}
    for number in range(2):
        part = steps.eval_step(
            jax.random.key(3), toy.first_variables(), toy.batch(number), loss_fn=loss
        )
        sums = steps.merge(sums, part)
    total, count = sums["loss/all"]
    assert got["loss/all"] == pytest.approx(float(total) / float(count), rel=1e-5)
    assert got["loss"] == pytest.approx(got["loss/all"] + got["loss/few"], rel=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"warmup_steps": 4},
            "warmup_steps must be at least 0 and below steps. Got warmup_steps=4, steps=4",
        ),
        ({"learning_rate": -1.0}, r"learning_rate must be above 0. Got -1\.0"),
        ({"ema_decay": 2.0}, r"ema_decay must be 0 or above, and below 1. Got 2\.0"),
        ({"evaluate_every": 0}, "evaluate_every must be above 0. Got 0"),
        ({"minutes": -1.0}, r"minutes must be above 0, or None. Got -1\.0"),
        ({"steps_now": 0}, "steps_now must be above 0, or None. Got 0"),
        ({"patience": 0}, "patience must be above 0, or None. Got 0"),
        ({"explosion": -1.0}, r"explosion must be above 1, or None. Got -1\.0"),
        ({"grace": 0.0}, r"grace must be above 0. Got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be 0 or above. Got -1\.0"),
        (
            {"layer_decay": 0.0, "layers": ("a",)},
            r"layer_decay must be above 0, and 1 at most. Got 0\.0",
        ),
        (
            {"layer_decay": 3.0, "layers": ("a",)},
            r"layer_decay must be above 0, and 1 at most. Got 3\.0",
        ),
        ({}, "box_steps must be above warmup_steps. Got 1 and 1"),
    ],
)
def test_numbers_that_do_not_fit(change, message):
    OPTIONS.check(box_steps=2)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **change).check(box_steps=1 if not change else 9)
