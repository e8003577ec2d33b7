"""Fixtures and strictness shared by all tests."""

import os

# Tests neither read nor leave behind what was compiled.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import cv2
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


@pytest.fixture
def boxes_csv(tmp_path):
    """A CSV of six pictures, a box in each; one picture is cut off, one box has no end."""
    draw = np.random.default_rng(0)
    rows = ["picture,x1,y1,x2,y2,class"]
    for i in range(6):
        pixels = draw.integers(0, 255, (40, 60, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
        rows.append(f"{i}.png,5,5,{'x' if i == 1 else 25},30,thing")
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:500])
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    return tmp_path / "boxes.csv"
