"""The record of a run: what it starts from and what models are applied with."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_regression as toy

from jaxdet.training import state


def test_starts_from_the_variables():
    got = toy.init(ema=True)
    assert int(got.step) == 0 and float(got.best) == -np.inf
    assert set(got.ema) == {"params", "batch_stats"}
    assert toy.to_bytes(got.ema["params"]) == toy.to_bytes(got.params)
    assert got.frozen == {}
    assert toy.init(ema=False).ema == {}


def test_typed_and_raw_keys_are_one():
    variables = {"params": {"w": jnp.ones(2)}}
    typed = state.init_state(jax.random.key(3), variables, toy.optimizer())
    raw = state.init_state(jax.random.key_data(jax.random.key(3)), variables, toy.optimizer())
    assert toy.to_bytes(typed) == toy.to_bytes(raw)


def test_shares_no_array_with_the_caller():
    variables = {"params": {"w": jnp.ones(2)}, "frozen": {"mean": jnp.ones(3)}}
    got = state.init_state(jax.random.key(0), variables, toy.optimizer(), ema=True)
    for leaf in jax.tree.leaves(got):
        leaf.delete()
    np.testing.assert_array_equal(variables["params"]["w"], 1)
    np.testing.assert_array_equal(variables["frozen"]["mean"], 1)


def test_the_average_predicts_where_there_is_one():
    got = toy.init(ema=True)
    got = got._replace(ema=jax.tree.map(lambda x: x + 1, got.ema), frozen={"mean": jnp.ones(3)})
    latest, average = state.variables(got), state.ema_variables(got)
    assert set(latest) == set(average) == {"params", "batch_stats", "frozen"}
    np.testing.assert_array_equal(
        average["params"]["Dense_0"]["kernel"], latest["params"]["Dense_0"]["kernel"] + 1
    )
    assert average["frozen"] is latest["frozen"]
    assert state.ema_variables(toy.init(ema=False))["params"].keys() == latest["params"].keys()


@pytest.mark.parametrize("names", [["batch_stats"], ["params", "cache"]])
def test_unknown_collections_are_refused(names):
    with pytest.raises(ValueError, match=f"Got .*{names[-1]}"):
        state.init_state(jax.random.key(0), {n: {"w": jnp.ones(2)} for n in names}, toy.optimizer())


def test_initial_variables_depend_on_the_key_alone():
    class Mean(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(2)(images.pixels.mean((1, 2)) + images.sizes.sum())

    first, again, other = (
        state.initial_variables(jax.random.key(k), Mean(), canvas=(4, 6)) for k in (0, 0, 1)
    )
    assert first["params"]["Dense_0"]["kernel"].shape == (3, 2)
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(
        first["params"]["Dense_0"]["kernel"], other["params"]["Dense_0"]["kernel"]
    )
