import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features import fast_conv


@pytest.fixture
def strip_values(monkeypatch):
    """Sets from which size on convolutions are large."""

    def change(values):
        monkeypatch.setattr(fast_conv, "STRIP_VALUES", values)
        jax.clear_caches()  # `conv` keeps what it traced.

    yield change
    jax.clear_caches()


@pytest.mark.parametrize("height", [5, 12, 13])
@pytest.mark.parametrize(
    "channels, size, stride, padding",
    [(32, 3, 1, 1), (32, 3, 2, 1), (32, 7, 2, 3), (128, 3, 1, 1), (128, 3, 1, 0)],
)
def test_large_convolutions_are_convolutions(
    rng, strip_values, channels, size, stride, padding, height
):
    """Values, gradients, and what needs more: of single images, of gradients, forward."""
    x = jnp.asarray(rng.normal(size=(2, height, 9, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, 3)), jnp.float32)
    direction = jnp.asarray(rng.normal(size=kernel.shape), jnp.float32)

    def gradients(kernel, x):
        def total(kernel, x):
            y = fast_conv.conv(x, kernel, stride=stride, padding=padding)
            return jnp.mean(jnp.sin(y / 10)), y

        return jax.grad(total, argnums=(0, 1), has_aux=True)(kernel, x)

    def all_of_it(kernel, x):
        each = jax.vmap(lambda x: gradients(kernel, x[None])[0])(x)
        curvature = jax.jvp(lambda kernel: gradients(kernel, x)[0], (kernel,), (direction,))
        return gradients(kernel, x), each, curvature

    want = jax.jit(all_of_it)(kernel, x)

    def close(got, want):
        scale = np.abs(want).max() if channels == 128 else 1  # Winograd's errors are of that size.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale)

    for values in (10**3, 1):
        strip_values(values)
        assert "scan" in str(jax.make_jaxpr(gradients)(kernel, x))
        jax.tree.map(close, jax.jit(lambda *a: all_of_it(*a))(kernel, x), want)


@pytest.mark.parametrize("height, padding", [(32, 1), (33, 1), (34, 0), (35, 2)])
def test_winograds_products_are_a_convolution(rng, height, padding):
    x = rng.normal(size=(2, height, 64, 128))
    kernel = rng.normal(size=(3, 3, 128, 8))
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    run = functools.partial(fast_conv.conv, stride=1, padding=padding)
    assert str(jax.make_jaxpr(run)(*arguments)).count("conv_general_dilated[") == 6
    rough = [x.astype(jnp.bfloat16) for x in arguments]
    assert str(jax.make_jaxpr(run)(*rough)).count("conv_general_dilated[") == 1
    got = jax.jit(run)(*arguments)
    more = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, more), (3, 3), (1, 2))
    want = np.einsum("bijcpq,pqcd->bijd", windows, kernel, optimize=True)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_winograds_matrices_are_exact():
    """Three products of each of four sums, from six: for all inputs and weights of one."""
    before, weights, after = (
        np.array(x) for x in (fast_conv.BEFORE, fast_conv.WEIGHTS, fast_conv.AFTER)
    )
    got = np.einsum("kp,pi,pj->kij", after, before, weights)
    want = [[[float(i == k + j) for j in range(3)] for i in range(6)] for k in range(4)]
    np.testing.assert_allclose(got, want, atol=1e-15)


def test_gradients_of_large_convolutions_are_summed_in_full(rng, strip_values):
    """In bfloat16 a sum over strips would stand still at 256."""
    x = jnp.ones((1, 40, 20, 32), jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 32, 1), jnp.bfloat16)
    strip_values(1)
    run = functools.partial(fast_conv.conv, stride=1, padding=1)
    gradient = jax.jit(jax.grad(lambda kernel: run(x, kernel).astype(jnp.float32).sum()))(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[1, 1], 800)
