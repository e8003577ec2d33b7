"""The second start reads what the first one compiled, and computes the same bits."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jaxdet.training import compilation
print(compilation.keep(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
x = jax.random.normal(jax.random.key(0), (64, 64))
print(jax.jit(lambda x: jnp.linalg.svd(x @ x)[1].sum())(x).tobytes().hex())
print("hits" if "/jax/compilation_cache/cache_hits" in found else "none")
"""


def start(folder, **environment):
    unset = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # The processor that it was compiled for is the one it is run on: no warnings.
    assert done.stderr == ""
    return done.stdout.split()


def test_a_second_start_finds_the_same_program(tmp_path):
    folder, first, hits = start("", JAXDET_CACHE=str(tmp_path))
    assert folder == str(tmp_path / "compiled") and hits == "none"
    assert start(tmp_path / "compiled") == [folder, first, "hits"]
    assert start("", JAX_COMPILATION_CACHE_DIR=folder) == [folder, first, "hits"]
    assert start(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=folder)[0] == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("flag", "environment"), [("off", {}), ("", {"JAX_ENABLE_COMPILATION_CACHE": "false"})]
)
def test_can_be_turned_off(tmp_path, flag, environment):
    assert start(flag, JAXDET_CACHE=str(tmp_path), **environment)[0] == "None"
    assert not any(tmp_path.iterdir())
