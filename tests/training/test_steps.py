"""One update and one validation step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_regression as toy

from jaxdet.structures import Batch, Images
from jaxdet.training import state as states
from jaxdet.training import steps


def line_loss(variables, batch, *, train):
    """(w - 3)^2 over two images, |w| counted once, and a term that counts nothing."""
    w = variables["params"]["w"]
    terms = {
        "square": (2 * (w - 3.0) ** 2, jnp.asarray(2)),
        "size": (jnp.abs(w), jnp.asarray(1)),
        "none": (0.0 * w, jnp.asarray(0)),
    }
    return terms, steps.Aux({"w": (w, jnp.asarray(1))}, variables["batch_stats"])


def line_state(tx, *, ema=False):
    variables = {"params": {"w": jnp.asarray(1.0)}}
    return states.init_state(jax.random.key(0), variables, tx, ema=ema)


def test_update_by_hand(compiled):
    tx = optax.sgd(0.1)
    step = functools.partial(steps.train_step, loss_fn=line_loss, tx=tx, loss_weights={"size": 0.5})
    state, metrics = compiled(step)(line_state(tx), toy.batch(0))
    # (1 - 3)^2 + 0.5 * 1; slope 2 * (1 - 3) + 0.5 = -3.5.
    assert float(metrics["loss"]) == pytest.approx(4.5)
    assert float(metrics["loss/square"]) == pytest.approx(4.0)
    assert float(metrics["loss/size"]) == pytest.approx(1.0)
    assert float(metrics["loss/none"]) == 0.0
    assert float(metrics["grad_norm"]) == pytest.approx(3.5)
    assert float(metrics["w"]) == 1.0
    assert float(state.params["w"]) == pytest.approx(1.35)
    assert int(state.step) == 1


def test_counts_have_no_gradient():
    def loss(variables, batch, *, train):
        w = variables["params"]["w"]
        return {"a": (w, 2.0 + w)}, steps.Aux({}, {})

    tx = optax.sgd(1.0)
    state, _ = steps.train_step(line_state(tx), toy.batch(0), loss_fn=loss, tx=tx)
    assert float(state.params["w"]) == pytest.approx(1 - 1 / 3)


def test_average_by_hand():
    tx = optax.sgd(0.1)
    state = line_state(tx, ema=True)
    step = functools.partial(steps.train_step, loss_fn=line_loss, tx=tx, ema_decay=0.4)
    step = jax.jit(step)
    average = 1.0
    for i in range(9):
        state, _ = step(state, toy.batch(0))
        decay = min(0.4, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * float(state.params["w"])
        assert float(state.ema["params"]["w"]) == pytest.approx(average, rel=1e-5)
    assert (1 + 5) / (10 + 5) == 0.4  # Both sides of the warm-up were met.


def test_statistics_are_taken_over():
    before = toy.init()
    after, _ = jax.jit(toy.step())(before, toy.batch(0))
    x = toy.batch(0).images.pixels.reshape(8, 6) / np.float32(255)
    hidden = x @ before.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(
        after.batch_stats["BatchNorm_0"]["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6
    )


def keys_seen(state, batch):
    seen = []

    def loss(variables, batch, *, train):
        seen.append(np.asarray(jax.random.key_data(batch.keys)))
        return line_loss(variables, batch, train=train)

    tx = optax.sgd(0.1)
    steps.train_step(state, batch, loss_fn=loss, tx=tx)
    return seen[0]


def test_an_image_has_its_own_key():
    state, batch = line_state(optax.sgd(0.1)), toy.batch(0)
    keys = keys_seen(state, batch)
    assert len(np.unique(keys, axis=0)) == 8
    # The key follows the place in the global batch, not the place on this device.
    turned = batch._replace(positions=np.roll(batch.positions, 3))
    np.testing.assert_array_equal(keys_seen(state, turned), np.roll(keys, 3, axis=0))
    later = keys_seen(state._replace(step=jnp.asarray(1, jnp.int32)), batch)
    assert not (later == keys).all(axis=1).any()


def test_validation_sums_over_batches_are_exact(compiled):
    state = toy.init()
    loss_fn = functools.partial(toy.loss, toy.Toy())
    evaluate = compiled(functools.partial(steps.eval_step, loss_fn=loss_fn))
    key = jax.random.key(4)
    parts, pairs = {}, []
    for number in range(3):
        got = evaluate(key, states.variables(state), toy.batch(number))
        pairs.append(got["loss/few"])
        parts = steps.merge(parts, got)
    totals = steps.means(parts)
    want = sum(float(s) for s, _ in pairs) / max(sum(int(n) for _, n in pairs), 1)
    assert float(totals["loss/few"]) == pytest.approx(want, rel=1e-6)
    assert {int(n) for _, n in pairs} != {int(pairs[0][1])}  # Unequal, or a mean would do.
    assert set(totals) == {"loss/all", "loss/few", "error"}
    again = evaluate(jax.random.key_data(key), states.variables(state), toy.batch(2))
    assert toy.to_bytes(again) == toy.to_bytes(got)


def test_merge_takes_names_of_one_side():
    merged = steps.merge({"a": (jnp.ones(()), jnp.ones(()))}, {"b": (2 * jnp.ones(()),) * 2})
    assert {k: (float(s), float(n)) for k, (s, n) in merged.items()} == {"a": (1, 1), "b": (2, 2)}


def test_misuse():
    tx = optax.sgd(0.1)
    step = functools.partial(steps.train_step, batch=toy.batch(0), loss_fn=line_loss, tx=tx)
    with pytest.raises(ValueError, match=r"loss_weights .*Got \['sise'\]"):
        step(line_state(tx), loss_weights={"sise": 1.0})
    with pytest.raises(ValueError, match=r"Got ema_decay=0.9, state.ema=\[\]"):
        step(line_state(tx), ema_decay=0.9)
    with pytest.raises(ValueError, match=r"Got ema_decay=0.0, state.ema=\['batch_stats'"):
        step(line_state(tx, ema=True))


def test_evaluate_losses_divides_once_all_batches_are_added():
    def step(key, variables, batch):
        del key
        count = batch.positions.shape[0]
        value = variables["params"]["w"] * batch.positions.sum()
        return {"loss/a": (value, jnp.float32(count)), "b": (value, jnp.float32(1))}

    batches = [toy_batch(positions=[1, 2]), toy_batch(positions=[5])]
    got = steps.evaluate_losses(jax.random.key(0), step, {"params": {"w": jnp.float32(3)}}, batches)
    assert got == {"loss/a": 8.0, "b": 12.0, "loss": 8.0}


def toy_batch(positions):
    nothing = jnp.zeros(0)
    images = Images(nothing, nothing)
    return Batch(images, nothing, nothing, positions=jnp.asarray(positions, jnp.float32))
