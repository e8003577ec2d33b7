"""The second start reads what the first one compiled, and computes the same bits."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import resource, signal, sys
if sys.argv[2:]:  # The system kills whoever writes more into one file.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
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


def start(folder, *limit, code=0, **environment):
    unset = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *map(str, limit)],
        env=kept | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
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


def test_a_program_cut_by_a_kill_is_compiled_again_once(tmp_path):
    start(tmp_path, 1000, code=-signal.SIGXFSZ)
    assert any(tmp_path.iterdir())
    _, first, hits = start(tmp_path)  # Which warns of nothing.
    assert hits == "none"
    assert start(tmp_path)[1:] == [first, "hits"]
