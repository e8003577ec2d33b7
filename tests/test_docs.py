"""What the documents show is run; what they name is there."""

import importlib
import pathlib
import re

import jax
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
OPERATORS = (DOCS / "operators.md").read_text()
RELIABILITY = (DOCS / "reliability.md").read_text()
README = (DOCS.parent / "README.md").read_text()
SETUP = re.search(r"```python\n(.*?)```", OPERATORS, flags=re.S)
# Cells of the tables' rows: names, torchvision's, use, what differs.
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in OPERATORS.splitlines()
    if line.startswith("| `")
]


@pytest.fixture(scope="module")
def names():
    scope = {}
    with jax.numpy_rank_promotion("allow"):
        exec(SETUP[1], scope)
    return scope


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split("`")[1])
def test_use(row, names):
    result = eval(row[2].strip("`"), names)
    numbers = [leaf for leaf in jax.tree.leaves(result) if hasattr(leaf, "shape")]
    assert numbers and all(np.isfinite(x).all() for x in numbers)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split("`")[1])
def test_names_are_there(row, names):
    module = None
    for name in re.findall(r"`([\w.]+)`", row[0]):
        *prefix, last = name.split(".")
        module = names[prefix[0]] if prefix else module
        assert callable(getattr(module, last))


def test_every_operator_is_listed(names):
    """Public functions of the modules that the page imports, but for what others are made of."""
    inner = {"weighted_sum", "taps", "neighbours", "adaptive_bins", "bin_edges", "round_corners"}
    modules = {
        value for value in names.values() if getattr(value, "__name__", "").startswith("jaxdet.")
    }
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        for name, member in vars(importlib.import_module(module.__name__)).items()
        if callable(member)
        and not name.startswith("_")
        and name[0].islower()
        and getattr(member, "__module__", None) == module.__name__
        and name not in inner
        and f"`{name}`" not in OPERATORS
        and f".{name}`" not in OPERATORS
    ]
    assert missing == []


@pytest.mark.slow
def test_the_python_of_reliability_runs(capsys):
    scope = {}
    blocks = re.findall(r"```python\n(.*?)```", RELIABILITY, flags=re.S)
    assert len(blocks) == 2
    with jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, scope)
    norms, losses = (
        np.array(text.split(), float)
        for text in re.findall(r"\[(.*?)\]", capsys.readouterr().out, flags=re.S)
    )
    assert len(norms) == 4 and len(losses) == 3 and (norms > 0).all() and (losses > 0).all()
    assert int(scope["best"].step) == 1


def test_the_readmes_python_runs(capsys):
    scope = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) == 2
    with jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, scope)
    assert "(2, 7, 7, 64)" in capsys.readouterr().out
    assert scope["detections"].boxes.shape == (1, 100, 4)
