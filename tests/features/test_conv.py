import functools
import re

import backbone_cases as cases
import backbone_parity as parity
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.features.conv import Conv, ConvNorm, adaptive_avg_pool, flatten, max_pool
from jaxdet.features.norm import BatchNorm


def naive_conv(x, kernel, bias, stride):
    """Oracle: torch's Conv2d with padding = size // 2, one output cell at a time."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height = (x.shape[1] + 2 * pad - size) // stride + 1
    width = (x.shape[2] + 2 * pad - size) // stride + 1
    out = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            window = padded[:, top : top + size, left : left + size]
            out[:, i, j] = np.einsum("bpqc,pqcd->bd", window, kernel) + bias
    return out


@pytest.mark.parametrize("height, width", [(6, 8), (7, 5)])
@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_conv_matches_oracle(rng, size, stride, height, width):
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 4)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=4), jnp.float32)
    conv = Conv(4, size, stride)
    got = jax.jit(conv.apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    want = naive_conv(np.array(x), np.array(kernel), np.array(bias), stride)
    assert got.shape == (2, -(-height // stride), -(-width // stride), 4)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_one_by_one_is_the_convolution_it_stands_for(rng):
    x = jnp.asarray(rng.normal(size=(1, 5, 4, 3)), jnp.float32)
    conv = Conv(6, 1, 2, use_bias=False)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (1, 1, 3, 6)

    def explicit(variables, x):
        return jax.lax.conv_general_dilated(
            x,
            variables["params"]["kernel"],
            (2, 2),
            [(0, 0), (0, 0)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def total(f):
        return lambda *a: jnp.sum(jnp.sin(f(*a)))

    np.testing.assert_allclose(conv.apply(variables, x), explicit(variables, x), rtol=1e-5)
    got = jax.grad(total(conv.apply), argnums=(0, 1))(variables, x)
    want = jax.grad(total(explicit), argnums=(0, 1))(variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_dtype_is_that_of_the_arithmetic_not_of_the_parameters():
    conv = Conv(2, 3, dtype=jnp.bfloat16)
    got, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    assert got.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size.*4"):
        Conv(2, 4).init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


@pytest.mark.parametrize("size, stride, groups", [(3, 1, 4), (5, 2, 8), (3, 2, 2)])
def test_groups_are_convolutions_of_their_own(rng, size, stride, groups):
    """One channel a group, and several: each group is a plain convolution of its channels."""
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 8)), jnp.float32)
    features = 8 if groups == 8 else 12
    conv = Conv(features, size, stride, use_bias=False, groups=groups)
    kernel = jnp.asarray(rng.normal(size=(size, size, 8 // groups, features)), jnp.float32)

    def each(kernel, x):
        kernels, parts = (jnp.split(v, groups, axis=3) for v in (kernel, x))
        alone = Conv(features // groups, size, stride, use_bias=False)
        outs = [
            alone.apply({"params": {"kernel": k}}, part)
            for k, part in zip(kernels, parts, strict=True)
        ]
        return jnp.concatenate(outs, axis=-1)

    def ours(kernel, x):
        return conv.apply({"params": {"kernel": kernel}}, x)

    def both(f):
        gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1))
        return jax.jit(lambda *a: (f(*a), gradient(*a)))(kernel, x)

    assert conv.init(jax.random.key(0), x)["params"]["kernel"].shape == kernel.shape
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, both(ours), both(each))


def test_padding_may_be_another(rng):
    """The first layer of AlexNet: 11x11 at stride 4, padded by 2."""
    x = jnp.asarray(rng.normal(size=(1, 18, 15, 2)), jnp.float32)
    got, variables = Conv(3, 11, 4, padding=2).init_with_output(jax.random.key(0), x)
    kernel = np.array(variables["params"]["kernel"])
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    want = [
        [np.einsum("pqc,pqcd->d", padded[0, i : i + 11, j : j + 11], kernel) for j in (0, 4, 8)]
        for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-4)


def test_conv_norm_is_its_three_layers(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 5, 3)), jnp.float32)
    mask = jnp.ones((2, 3, 3, 1), bool)
    layer = ConvNorm(4, 3, BatchNorm, stride=2, names=("conv", "bn"))
    got, variables = layer.init_with_output(jax.random.key(0), x, mask, train=False)
    assert set(variables["params"]) == {"conv", "bn"}
    assert set(variables["params"]["conv"]) == {"kernel"}
    conv = Conv(4, 3, 2, use_bias=False).apply({"params": variables["params"]["conv"]}, x)
    np.testing.assert_allclose(got, np.maximum(conv, 0) / np.sqrt(1 + 1e-5), rtol=1e-5)
    linear = layer.clone(activation=None).apply(variables, x, mask, train=False)
    np.testing.assert_allclose(linear, conv / np.sqrt(1 + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("height, width", [(8, 6), (7, 5), (1, 2)])
def test_max_pool_is_linens(rng, height, width):
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)

    def linens(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def value_and_gradient(f):
        def total(x):
            y = f(x)
            return jnp.sum(jnp.sin(3 * y)), y

        (_, y), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x)
        return y, gradient

    # No two values are equal, so that gradients have one right answer.
    (got, got_gradient), (want, want_gradient) = map(value_and_gradient, (max_pool, linens))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got_gradient, want_gradient, rtol=1e-5, atol=1e-6)


def test_max_pool_gradient():
    # Spread out, so that a finite difference does not change which value is the largest.
    x = jax.random.permutation(jax.random.key(0), jnp.arange(30.0)).reshape(1, 5, 6, 1)
    check_grads(lambda x: max_pool(jnp.asarray(x)), (x,), order=1, modes=["rev"], eps=0.01)


def test_equal_values_share_one_gradient():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.zeros((1, 4, 4, 1)))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(), 4, rtol=1e-6)  # One for each output.


def golden(kind):
    """What torch made of the same map of 13 x 8, by case."""
    prefix = f"{kind}/"
    return {k.removeprefix(prefix): v for k, v in parity.GOLDEN.items() if k.startswith(prefix)}


def test_max_pool_is_torchs():
    x = jnp.asarray(cases.pictures(1, 13, 8, 2))
    for case, want in golden("max").items():
        size, stride, padding, ceil_mode = map(int, case.split("-"))
        options = {"kernel_size": size, "stride": stride, "padding": padding}
        got = max_pool(x, **options, ceil_mode=bool(ceil_mode))
        np.testing.assert_array_equal(got, want, err_msg=case)


def test_adaptive_avg_pool_is_torchs():
    x = jnp.asarray(cases.pictures(1, 13, 8, 2))
    for case, want in golden("adaptive").items():
        shape = tuple(map(int, re.findall(r"\d+", case)))
        got = adaptive_avg_pool(x, shape)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=case)


def test_adaptive_avg_pool_by_hand():
    # Of five cells, the first bin has 0..1, the second 1..3, the third 3..4.
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    np.testing.assert_allclose(adaptive_avg_pool(x, (3, 1)).ravel(), [0.5, 2, 3.5], rtol=1e-6)
    # Bins of their own: nothing changes, not even in the last bit.
    x = jnp.asarray(cases.pictures(2, 3, 4, 5))
    np.testing.assert_array_equal(adaptive_avg_pool(x, (3, 4)), x)


def test_adaptive_avg_pool_keeps_the_type():
    assert adaptive_avg_pool(jnp.ones((1, 3, 3, 1), jnp.bfloat16), (2, 2)).dtype == jnp.bfloat16


def test_flatten_goes_channel_by_channel():
    x = jnp.arange(12).reshape(1, 2, 2, 3).astype(jnp.float32)
    np.testing.assert_array_equal(flatten(x)[0], [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11])
