import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdet.features.conv import Conv, max_pool


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
