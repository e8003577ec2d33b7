"""A whole run from a loss, batches and an evaluation."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import checkpoints, fit, logging, parallel, recipes, state, steps

OPTIONS = fit.Options(
    batch_size=8, steps=4, warmup_steps=1, evaluate_every=2, checkpoint_every=2, log_every=1
)
LOSS = functools.partial(toy.loss, toy.Toy(parallel.AXIS))


def evaluate(variables, step):
    return {"size": float(np.abs(variables["params"]["Dense_1"]["kernel"]).sum()), "at": step}


def run(out, options=OPTIONS, *, classes=("a",), config=None, **changes):
    metadata = {"classes": list(classes), "config": config or {"seed": options.seed, "steps": 0}}
    arguments = {"best_metric": "size", "evaluate": evaluate} | changes
    fit.fit(
        toy.first_variables(),
        loss_fn=LOSS,
        batches=toy.batches,
        options=options,
        out=out,
        log=logging.MetricsLog(out),
        metadata=metadata,
        **arguments,
    )
    return checkpoints.load_variables(out / "checkpoints" / "last")


def test_is_the_loop_over_the_step(tmp_path):
    """Beside a loop written out."""
    variables, metadata = run(tmp_path)
    tx = fit.make_optimizer(OPTIONS)
    now = state.init_state(jax.random.key(0), toy.first_variables(), tx, ema=True)
    step = jax.jit(
        functools.partial(
            steps.train_step,
            loss_fn=functools.partial(toy.loss, toy.Toy()),
            tx=tx,
            ema_decay=OPTIONS.ema_decay,
        )
    )
    for number in range(OPTIONS.steps):
        now, _ = step(now, toy.batch(number))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, variables["params"], jax.device_get(state.ema_variables(now)["params"]))
    assert metadata["step"] == 4 and metadata["classes"] == ["a"]
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
        batches=batches,
        evaluate=evaluate,
        best_metric="size",
        options=OPTIONS,
        out=out,
        log=logging.MetricsLog(out),
        metadata={"classes": ["a"], "config": {"seed": 0, "steps": 0}},
    )


def test_refuses_another_run(tmp_path):
    run(tmp_path)
    with pytest.raises(recipes.ConfigError, match="seed: 0 -> 1"):
        run(tmp_path, dataclasses.replace(OPTIONS, seed=1))
    with pytest.raises(recipes.ConfigError, match="classes"):
        run(tmp_path, classes=("b",))
    with pytest.raises(recipes.ConfigError, match="color"):
        run(tmp_path, config={"seed": 0, "steps": 0, "color": 1})
    run(tmp_path, config={"seed": 0, "steps": 7, "color": 1}, free=("color",))


def test_freezes_what_is_not_trainable(tmp_path):
    variables, _ = run(tmp_path, trainable=lambda path: not path.startswith("Dense_0/"))
    before = toy.first_variables()["params"]
    np.testing.assert_array_equal(
        variables["params"]["Dense_0"]["kernel"], before["Dense_0"]["kernel"]
    )
    assert (variables["params"]["Dense_1"]["kernel"] != before["Dense_1"]["kernel"]).any()


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
