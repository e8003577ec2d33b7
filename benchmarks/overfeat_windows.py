"""What it costs to look at every window of a picture: once for all, or each cut out.

Expected  accurate, multiplications of cutting out over those of the dense way: 1.0, 9.0, 28.2, 30.5
          and 33.6 at 221, 257, 461, 569 and 1024 px; seconds at 257 px 0.44 against 1.38, at 461 px
          2.35 against 34.2, 14.5 times as many. One minute on two cores (Intel, AVX-512).
Run       python benchmarks/overfeat_windows.py
          python benchmarks/overfeat_windows.py --design fast --measured 231 467 --sizes 231 467
Columns   windows at the finest stride; multiplications (with their additions, in billions, counted
          from shapes) of the dense way and of cutting windows out, and their ratio; the same
          measured, seconds, on the sizes asked for. In padded layers windows of a larger picture
          see its pixels where their crops have zeros: with random weights logits differ by up to
          their standard deviation. Of maps, and without padding, windows are equal;
          `tests/features`.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdet.features import dense, overfeat
from jaxdet.features.norm import whole
from jaxdet.geometry import receptive_field
from jaxdet.systems.overfeat import DESIGNS
from jaxdet.training import recipes


@dataclasses.dataclass(frozen=True)
class Config:
    """What to count and to measure."""

    design: Literal["fast", "accurate", "small"] = "accurate"
    sizes: tuple[int, ...] = (221, 257, 461, 569, 1024)
    """Sides of the pictures, pixels."""
    measured: tuple[int, ...] = (257, 461)
    """Those of them that are also timed; 461 takes minutes for its 441 crops."""
    batch_size: int = 21
    """Crops at once."""
    repeats: int = 5
    """Of the dense way, spread over the crops, of which all are timed once; the median counts."""


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


def measure(config: Config, model: overfeat.OverFeat, variables: Any, side: int) -> list[float]:
    """Seconds of the dense way and of all crops, in turn."""
    design = model.design
    picture = jax.random.normal(jax.random.key(1), (1, side, side, 3))

    @jax.jit
    def at_once(variables: Any, x: jax.Array) -> jax.Array:
        maps = model.apply(variables, x, whole(x), train=False)[-1]
        layers = dense.layers_of(variables["params"]["classifier"])
        return overfeat.slide(maps, layers, design, fine=True)

    classify = jax.jit(functools.partial(model.apply, train=False, method="logits"))
    n = overfeat.n_windows(design, side, fine=True)
    columns, rows = jnp.meshgrid(jnp.arange(n), jnp.arange(n))
    cells = jnp.stack([columns, rows, columns + 1, rows + 1], axis=-1).reshape(-1, 4)
    windows = receptive_field.seen(overfeat.window_field(design, fine=True), cells)
    corners = windows[:, :2].astype(jnp.int32).tolist()
    cut = [picture[0, y : y + design.size, x : x + design.size] for x, y in corners]
    batches = [
        jnp.stack(cut[i : i + config.batch_size]) for i in range(0, len(cut), config.batch_size)
    ]

    def look() -> jax.Array:
        return at_once(variables, picture)

    jax.block_until_ready(
        [look(), classify(variables, batches[0]), classify(variables, batches[-1])]
    )
    every = -(-len(batches) // config.repeats)
    of_dense, of_crops = [], 0.0
    for i, batch in enumerate(batches):  # In turn, so that both meet the same machine.
        if i % every == 0:
            of_dense.append(seconds(look))
        of_crops += seconds(functools.partial(classify, variables, batch))
    return [statistics.median(of_dense), of_crops]


def main(config: Config) -> dict[int, list[float]]:
    """Prints the table; returns what was measured by side."""
    design = DESIGNS[config.design]
    model = overfeat.OverFeat(design)
    x = jnp.zeros((1, design.size, design.size, 3))
    init = functools.partial(model.init, train=False, method="logits")
    variables = jax.jit(init)(jax.random.key(0), x) if config.measured else None
    one = sum(overfeat.multiply_adds(design, (design.size, design.size), fine=True))
    print(f"{'side':>5}{'windows':>9}{'dense':>9}{'crops':>10}{'ratio':>8}{'measured':>26}")
    found = {}
    for side in config.sizes:
        n = overfeat.n_windows(design, side, fine=True) ** 2
        dense = sum(overfeat.multiply_adds(design, (side, side), fine=True))
        row = f"{side:5}{n:9}{dense / 1e9:9.1f}{n * one / 1e9:10.1f}{n * one / dense:8.1f}"
        if side in config.measured:
            found[side] = measure(config, model, variables, side)
            by_dense, by_crops = found[side]
            row += f"{by_dense:9.2f} {by_crops:8.2f} {by_crops / by_dense:7.1f}"
        print(row, flush=True)
    return found


if __name__ == "__main__":
    recipes.run_script(main, Config, description=__doc__ or "")
