import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.geometry import rounding


@pytest.mark.parametrize("n", [3, 7, 14])
def test_quotients_are_those_of_numpy(n):
    x = np.arange(1, 100_000, dtype=np.float32)
    got = jax.jit(lambda x: rounding.divide(x, n))(x)
    np.testing.assert_array_equal(got, x / np.float32(n))
    got = jax.jit(lambda x, n: rounding.divide(x, n))(x, jnp.float32(n))
    np.testing.assert_array_equal(got, x / np.float32(n))


def test_sums_of_products_are_those_of_numpy(rng):
    a, b, c = rng.normal(size=(3, 10_000)).astype(np.float32)
    got = jax.jit(lambda a, b, c: rounding.rounded(a * b) + c)(a, b, c)
    np.testing.assert_array_equal(got, a * b + c)


def test_nan_is_far_away():
    assert rounding.rounded(jnp.float32(np.nan)) == np.inf
