import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxdet.features.activations import relu


def test_relu_is_that_of_jax():
    x = jnp.array([-jnp.inf, -2.5, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
    for each in (relu, jax.vmap(relu), jax.jit(relu)):
        slopes = jax.grad(lambda x, each=each: each(x).sum())(x[:-1])
        np.testing.assert_array_equal(slopes, [0, 0, 0, 0, 1, 1, 1])
    assert relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    check_grads(lambda x: relu(jnp.asarray(x)) ** 3, (jnp.array([-1.5, 0.5, 2.0]),), order=2)


def test_residual_blocks_are_computed_once(rng):
    """A gradient needs two maps of each of eight blocks; others are for computing them anew."""
    kernels = jnp.asarray(rng.normal(0, 0.1, (8, 2, 64, 64)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(4096, 64)), jnp.float32)

    def temporaries(activation):
        def block(x, kernel):
            return activation(x + activation(x @ kernel[0]) @ kernel[1] * 0.5)

        gradient = jax.grad(lambda kernels: functools.reduce(block, kernels, x).sum())
        return jax.jit(gradient).lower(kernels).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(relu) < min(20 * x.nbytes, 0.7 * temporaries(jax.nn.relu))
