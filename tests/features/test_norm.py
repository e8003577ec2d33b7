import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features.norm import (
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    normalized,
    valid_mask,
    whole,
)
from jaxdet.structures import Images


def ones(x):
    return jnp.ones((*x.shape[:3], 1), bool)


def test_valid_mask_by_hand():
    # Stride 4: cell r begins at pixel 4 r. 5 rows of pixels reach into the second cell, 4 do not.
    got = valid_mask(jnp.array([[5, 12], [4, 1], [0, 0]]), (2, 3), stride=4)
    assert got.shape == (3, 2, 3, 1)
    want = [[[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(got[..., 0], want)


def test_whole_pictures_have_no_padding():
    x = jnp.zeros((2, 3, 5, 1))
    np.testing.assert_array_equal(whole(x), [[3, 5], [3, 5]])
    assert valid_mask(whole(x), (3, 5), stride=1).all()


def test_normalized_pictures_are_zero_beside_themselves():
    pixels = jnp.array([[[[30, 8, 2], [9, 9, 9]], [[9, 9, 9], [9, 9, 9]]]], jnp.uint8)
    got = normalized(
        Images(pixels, jnp.array([[1, 1]])), mean=(10.0, 20.0, 2.0), std=(2.0, 3.0, 4.0)
    )
    want = np.zeros((1, 2, 2, 3))
    want[0, 0, 0] = (10, -4, 0)
    np.testing.assert_array_equal(got, want)


def test_batch_norm_formula(rng):
    x = jnp.asarray(rng.normal(2, 3, (4, 3, 5, 2)), jnp.float32)
    params = {"scale": jnp.array([2.0, 0.5]), "bias": jnp.array([1.0, -1.0])}
    stats = {"mean": jnp.array([5.0, 6.0]), "var": jnp.array([4.0, 9.0])}
    variables = {"params": params, "batch_stats": stats}

    mean, variance = np.array(x).mean((0, 1, 2)), np.array(x).var((0, 1, 2))
    got, moved = BatchNorm().apply(variables, x, ones(x), train=True, mutable=["batch_stats"])
    want = (np.array(x) - mean) / np.sqrt(variance + 1e-5) * [2, 0.5] + [1, -1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    moved = moved["batch_stats"]
    np.testing.assert_allclose(moved["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-5)
    unbiased = np.array(x).var((0, 1, 2), ddof=1)  # Of 60 cells: 1.7 % more.
    np.testing.assert_allclose(moved["var"], 0.9 * stats["var"] + 0.1 * unbiased, rtol=1e-4)

    got = BatchNorm().apply(variables, x, ones(x), train=False)
    want = (np.array(x) - [5, 6]) / np.sqrt(np.array([4, 9]) + 1e-5) * [2, 0.5] + [1, -1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_one_cell_keeps_its_statistics_finite():
    x = jnp.ones((1, 1, 1, 2))
    variables = BatchNorm().init(jax.random.key(0), x, ones(x), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)  # `init` moves nothing.
    _, moved = BatchNorm().apply(variables, x, ones(x), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9, rtol=1e-6)


def test_batch_norm_of_two_devices_is_that_of_one(rng):
    # The halves differ a lot: without synchronization so would the results.
    x = jnp.asarray(rng.normal(size=(4, 3, 3, 2)) + np.arange(4).reshape(4, 1, 1, 1), jnp.float32)
    variables = BatchNorm().init(jax.random.key(0), x, ones(x), train=False)

    def run(norm, x):
        return norm.apply(variables, x, ones(x), train=True, mutable=["batch_stats"])

    def pull(norm, x):  # The gradient, too, goes through the shared statistics.
        return jax.grad(lambda x: jnp.sum(jnp.sin(run(norm, x)[0])))(x)

    synchronized = BatchNorm(axis_name="d")
    halves = x.reshape(2, 2, 3, 3, 2)
    want, want_stats = run(BatchNorm(), x)
    got, stats = jax.pmap(functools.partial(run, synchronized), axis_name="d")(halves)
    np.testing.assert_allclose(got.reshape(x.shape), want, rtol=1e-5, atol=1e-5)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), stats, want_stats
        )
    got = jax.pmap(functools.partial(pull, synchronized), axis_name="d")(halves)
    np.testing.assert_allclose(got.reshape(x.shape), pull(BatchNorm(), x), rtol=1e-4, atol=1e-5)


def test_frozen_batch_norm_formula(rng):
    x = jnp.asarray(rng.normal(size=(1, 2, 2, 2)), jnp.float32)
    frozen = {"scale": [2.0, 1.0], "bias": [1.0, -3.0], "mean": [5.0, 0.0], "var": [4.0, 0.0]}
    frozen = {name: jnp.array(v) for name, v in frozen.items()}
    want = (np.array(x) - [5, 0]) / np.sqrt(np.array([4, 0]) + 1e-5) * [2, 1] + [1, -3]
    for train in (True, False):
        got = FrozenBatchNorm().apply({"frozen": frozen}, x, ones(x), train=train)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_frozen_batch_norm_has_no_parameters():
    x = jnp.ones((1, 2, 2, 3))
    variables = FrozenBatchNorm().init(jax.random.key(0), x, ones(x), train=True)
    assert set(variables) == {"frozen"}
    assert {k: v.shape for k, v in variables["frozen"].items()} == {
        name: (3,) for name in ("scale", "bias", "mean", "var")
    }
    np.testing.assert_allclose(
        FrozenBatchNorm().apply(variables, x, ones(x), train=True), x, rtol=1e-4
    )


def naive_group_norm(x, height, width, per_group):
    """Oracle: each image and group by itself, its picture alone."""
    out = np.zeros_like(x)
    for b in range(len(x)):
        for c in range(0, x.shape[-1], per_group):
            values = x[b, : height[b], : width[b], c : c + per_group]
            group = x[b, :, :, c : c + per_group]
            out[b, :, :, c : c + per_group] = (group - values.mean()) / np.sqrt(values.var() + 1e-5)
    return out


def test_group_norm_matches_oracle(rng):
    x = rng.normal(1, 2, (2, 6, 5, 4)).astype(np.float32)
    sizes = jnp.array([[6, 5], [3, 2]])
    params = {"scale": jnp.array([1.0, 2, 3, 4]), "bias": jnp.array([0.0, 1, 0, -1])}
    got = GroupNorm(2).apply(
        {"params": params}, jnp.asarray(x), valid_mask(sizes, (6, 5), stride=1), train=True
    )
    want = naive_group_norm(x, [6, 3], [5, 2], 2) * [1, 2, 3, 4] + [0, 1, 0, -1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_group_norm_ignores_content_and_amount_of_padding(rng):
    picture = rng.normal(size=(1, 3, 2, 4)).astype(np.float32)
    variables = GroupNorm(2).init(
        jax.random.key(0), jnp.asarray(picture), ones(picture), train=True
    )

    def inside(height, width, fill):
        canvas = np.full((1, height, width, 4), fill, np.float32)
        canvas[:, :3, :2] = picture
        mask = valid_mask(jnp.array([[3, 2]]), (height, width), stride=1)
        return GroupNorm(2).apply(variables, jnp.asarray(canvas), mask, train=True)[:, :3, :2]

    want = inside(3, 2, 0)
    for case in ((5, 6, 0), (5, 6, 7), (4, 2, -100)):
        np.testing.assert_allclose(inside(*case), want, rtol=1e-5, atol=1e-6)


def test_group_norm_of_padding_alone_is_finite():
    x = jnp.ones((1, 2, 2, 2))
    norm = GroupNorm(2)
    variables = norm.init(jax.random.key(0), x, ones(x), train=True)

    def total(x):
        return jnp.sum(norm.apply(variables, x, ~ones(x), train=True) ** 2)

    value, gradient = jax.value_and_grad(total)(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_group_norm_wants_whole_groups():
    x = jnp.ones((1, 2, 2, 6))
    with pytest.raises(ValueError, match=r"6 channels.*4"):
        GroupNorm(4).init(jax.random.key(0), x, ones(x), train=True)


@pytest.mark.parametrize("norm", [BatchNorm, FrozenBatchNorm, GroupNorm])
def test_the_type_of_the_output_is_asked_for(norm):
    x = jnp.ones((1, 2, 2, 16), jnp.bfloat16)
    layer = norm(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, ones(x), train=False)
    got = layer.apply(variables, x, ones(x), train=True, mutable=["batch_stats"])[0]
    assert got.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_frozen_batch_norm_starts_as_the_identity_whatever_is_asked_for(rng):
    """A scale of zero that is never trained would silence a residual branch for good."""
    x = jnp.asarray(rng.normal(size=(1, 2, 2, 3)), jnp.float32)
    mask = jnp.ones((1, 2, 2, 1), bool)
    layer = FrozenBatchNorm(epsilon=0.0, scale_init=jax.nn.initializers.zeros)
    got, _ = layer.init_with_output(jax.random.key(0), x, mask, train=True)
    np.testing.assert_allclose(got, x, rtol=1e-6)
