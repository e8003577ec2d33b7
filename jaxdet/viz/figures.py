"""Plots of a run, as PNG files."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LEGEND_ROWS = 20


def precision_recall_figure(
    path: str | os.PathLike,
    precision: Float[np.ndarray, "r k"],
    classes: Sequence[str],
    *,
    title: str = "Precision and recall at IoU 0.5",
) -> Path:
    """Draws a precision-recall curve for each class, with its average precision.

    Args:
      path: The PNG file to write.
      precision: 0 to 1, at r recalls evenly spaced from 0 to 1; NaN for classes without objects.
      classes: Names of the k classes.
      title: What stands above.

    Returns:
      The path.
    """
    if len(classes) != precision.shape[1]:
        raise ValueError(f"Expected {precision.shape[1]} class names, got {len(classes)}")
    columns = math.ceil((len(classes) + 1) / LEGEND_ROWS)
    figure = Figure(figsize=(6.2 + 1.8 * columns, 5), layout="constrained")
    axes = figure.add_subplot()
    recall = np.linspace(0, 1, precision.shape[0])
    found = precision.mean(axis=0)
    for i in np.argsort(-np.nan_to_num(found, nan=-1), kind="stable"):
        style = _style(int(i))
        name = f"{classes[i]}  " + ("none" if np.isnan(found[i]) else f"{found[i]:.3f}")
        axes.plot(recall, precision[:, i], label=name, **style)
    if np.isfinite(found).any():
        mean = np.nanmean(precision, axis=1)
        axes.plot(recall, mean, "k", linewidth=2.5, label=f"mean  {np.nanmean(found):.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    figure.legend(loc="outside right upper", title="average precision", ncols=columns, fontsize=8)
    axes.grid(alpha=0.3)
    return _save(path, figure)


def training_curves(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Draws the losses and the scores of a run over its steps.

    Args:
      path: The PNG file to write.
      rows: Of `metrics.jsonl`: each has "step" and any of the numbers logged then. A name with
        "loss" in it is a loss; another one that begins with "eval/" is a score, 0 to 1.

    Returns:
      The path.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    losses = [name for name in names if "loss" in name]
    scores = [name for name in names if name.startswith("eval/") and name not in losses]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, rows, losses)
    _curves(right, rows, scores)
    left.set(title="Losses", xlabel="step")
    left.set_ylim(bottom=0)
    right.set(title="Scores", xlabel="step", ylim=(0, 1))
    return _save(path, figure)


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], names: list[str]) -> None:
    """One line a name, from the rows that have it."""
    for i, name in enumerate(names):
        logged = [row for row in rows if row.get(name) is not None]
        steps, values = [row["step"] for row in logged], [row[name] for row in logged]
        width = 2.5 if name in ("loss", "eval/AP") else 1.5
        marker = "." if name.startswith("eval/") else ""  # A single evaluation makes no line.
        axes.plot(steps, values, label=name, marker=marker, linewidth=width, **_style(i))
    if names:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # Beside the axes.
    axes.grid(alpha=0.3)


def _style(i: int) -> dict[str, Any]:
    """Ten colours, then the same ten dashed."""
    colors = matplotlib.color_sequences["tab10"]
    return {"color": colors[i % 10], "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}


def _save(path: str | os.PathLike, figure: Figure) -> Path:
    """Figures without pyplot belong to nobody's global state, so threads and notebooks are safe."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path
