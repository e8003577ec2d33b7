"""Operators and detectors beside torchvision's: the same inputs, call by call in turn, in one run.

Needs     pip install torch torchvision
Run       python benchmarks/vs_torchvision.py
          python benchmarks/vs_torchvision.py --only roi_align nms --repeats 15
Columns   jaxdet, torchvision: median of the repeats, milliseconds; ratio: of the two, below 1 where
          jaxdet is faster; compile: of jaxdet, seconds, once a shape; again: the same where the
          compilation cache has it; memory: how far the first call raises the resident memory,
          jaxdet / torchvision, megabytes (Linux; - elsewhere); differ: largest difference of the
          results, relative to the largest value (updates sample different boxes).

Torch's threads wait in a busy loop for a while after each call, so a pause lies between calls.
"""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import operator_rows
import system_rows
import torch
import torchvision
from jax.experimental.compilation_cache import compilation_cache
from operator_rows import Row

from jaxdet.training import parallel, recipes

PAUSE = 0.03  # Seconds.


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Rows whose name contains one of these words; all if none."""
    repeats: int = 7
    """Timed calls of each library a row, after two that are not timed."""
    seed: int = 0
    """Of the inputs."""


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, megabytes; NaN where the system does not say."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    sizes = [float(line.split()[1]) for line in lines if line.startswith(field)]
    return sizes[0] / 1024 if sizes else float("nan")


def memory_rise(call: Callable[[], Any]) -> float:
    """How far a call raises the resident memory above what it is before, megabytes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # Gives back what earlier calls left free.
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far.
    except OSError:
        return float("nan")
    before = resident("VmRSS")
    call()
    return max(resident("VmHWM") - before, 0.0)


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference relative to the largest value."""
    parts = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / max(float(np.abs(b).max()), 1e-9))
        for a, b in parts
    )


def compile_twice(row: Row, arguments: tuple[Any, ...]) -> tuple[Any, float, float]:
    """The compiled function; seconds to compile it anew, and to find it in a compilation cache."""
    seconds, compiled = [], None
    used_up, options = ((0,), parallel.compiler_options(jax.devices())) if row.carries else ((), {})
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        for _ in range(2):
            jax.clear_caches()
            begun = time.perf_counter()
            lowered = jax.jit(row.ours, donate_argnums=used_up).lower(*arguments)
            compiled = lowered.compile(options)
            seconds.append(time.perf_counter() - begun)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
    return compiled, seconds[0], seconds[1]


def measure(row: Row, *, repeats: int) -> str:
    """One line of the table."""
    arguments = jax.tree.map(jnp.asarray, row.arguments)
    compiled, compile_seconds, again_seconds = compile_twice(row, arguments)

    def ours() -> Any:
        nonlocal arguments
        result = jax.block_until_ready(compiled(*arguments))
        if row.carries:
            arguments = (result[0], *arguments[1:])
        return result

    calls = (ours, row.theirs)
    memory = [memory_rise(call) for call in calls]  # Before anything is kept for later calls.
    theirs_numpy = jax.tree.map(lambda tensor: tensor.numpy(), row.theirs())
    differ = difference(row.compared(ours()), row.to_ours(theirs_numpy))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for call, taken in zip(calls, seconds, strict=True):
            time.sleep(PAUSE)
            begun = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begun)
    ours_ms, theirs_ms = (1e3 * float(np.median(taken[1:])) for taken in seconds)
    return (
        f"{row.name:42}{ours_ms:10.2f}{theirs_ms:12.2f}{ours_ms / theirs_ms:8.2f}"
        f"{compile_seconds:10.2f}{again_seconds:8.2f}{memory[0]:9.0f} /{memory[1]:6.0f}"
        f"{differ:10.0e}"
    )


def main(config: Config) -> None:
    """Measures and prints."""
    torch.set_num_threads(os.cpu_count() or 1)
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    )
    print(
        f"{'':42}{'jaxdet ms':>10}{'torchvision':>12}{'ratio':>8}{'compile s':>10}"
        f"{'again s':>8}{'memory MB':>17}{'differ':>10}"
    )
    for rows in (*operator_rows.ROWS, system_rows.system_rows):
        for row in rows(np.random.default_rng(config.seed)):
            if not config.only or any(word in row.name for word in config.only):
                print(measure(row, repeats=config.repeats), flush=True)


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
