"""Fixtures and strictness shared by all tests."""

import os

# Tests neither read nor leave behind what was compiled.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import numpy as np
import pytest

# Broadcasting a (3, 4) against a (4,) is nearly always a mistake in box code.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Two devices, so that what is said of many devices is tested on more than one.
jax.config.update("jax_num_cpu_devices", 2)
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator."""
    return np.random.default_rng(0)


@pytest.fixture(params=["eager", "jit"])
def compiled(request):
    """Runs a pure function as it is and compiled: `compiled(f)(x)`."""
    return jax.jit if request.param == "jit" else lambda f: f
