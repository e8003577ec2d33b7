"""The names and layouts of torchvision's tensors, and our variables: one rule for all models.

Modules have torchvision's names here, so what is left are the names of layers' arrays, the order of
axes, the collection that an array lives in, and the system around a classifier's `network`.

    kernel of a convolution   [h, w, in, out] <- [out, in, h, w]
    kernel of a dense layer   [in, out] <- [out, in]; where it reads a map laid out flat, its rows
                              are ordered by row, column, channel instead of channel, row, column
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxdet.weights import families
from jaxdet.weights.tensor_pickle import WeightsError

# Dense layers that read a flattened map, and its (height, width).
FLATTENED = {r"roi_heads\.box_head\.(fc6|\d+)": (7, 7)}
# Names of torchvision's first models, which its published files still have.
OLD_NAMES = (
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
)
# What wrappers put before all names.
WRAPPED = r"^(module\.|_orig_mod\.)+"
COUNTERS = ("num_batches_tracked", "n_averaged")
_ARRAYS = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
_FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def tidy(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state dict under torchvision's names of today, without wrappers and counters.

    Args:
      state_dict: Arrays by name, as a file has them.

    Raises:
      WeightsError: Where two names are one, with and without a wrapper.
    """
    tidied = {}
    for stored, array in state_dict.items():
        name = re.sub(WRAPPED, "", stored)
        for old, new in OLD_NAMES:
            name = re.sub(old, new, name)
        if name in tidied:
            raise WeightsError(f"{name} is there twice; the second time as {stored}.")
        if not name.endswith(COUNTERS):
            tidied[name] = array
    return tidied


def from_state_dict(
    state_dict: Mapping[str, np.ndarray],
    like: Any,
    *,
    flattened: Mapping[str, tuple[int, int]] = FLATTENED,
) -> Any:
    """Returns a model's variables from a state dict of torchvision.

    Args:
      state_dict: Arrays by name.
      like: Variables of the model; their shapes are enough.
      flattened: Dense layers that read a flattened map, by pattern, and its (height, width).

    Returns:
      Arrays of the host, in the types of `like`.

    Raises:
      WeightsError: Names every tensor that is missing, not wanted or of another shape, and says
        what the state dict seems to be.
    """
    found = tidy(state_dict)
    _check(found, {_name(path): _torch_shape(leaf.shape) for _, path, leaf in _by_path(like)})

    def read(path: Any, leaf: Any) -> np.ndarray:
        name = _name(_joined(path[1:]))
        array = _from_torch(found[name], leaf.shape, _map_size(name, flattened))
        return np.asarray(array, leaf.dtype, order="C")

    return jax.tree_util.tree_map_with_path(read, like)


def to_state_dict(
    variables: Any, *, flattened: Mapping[str, tuple[int, int]] = FLATTENED
) -> dict[str, np.ndarray]:
    """Returns variables as a state dict that torchvision's model of this architecture loads.

    Args:
      variables: "params" and, where the model has them, "batch_stats" and "frozen".
      flattened: As in `from_state_dict`.

    Returns:
      Contiguous arrays by name, in the order of the names.
    """
    state_dict = {}
    for collection, path, leaf in _by_path(variables):
        name = _name(path)
        array = np.asarray(jax.device_get(leaf))
        state_dict[name] = np.asarray(_to_torch(array, _map_size(name, flattened)), order="C")
        if collection == "batch_stats" and name.endswith("running_var"):
            # Tells trained norms from frozen ones. Ours average with a momentum, not over a count.
            counter = name.replace("running_var", COUNTERS[0])
            state_dict[counter] = np.zeros((), np.int64)
    return dict(sorted(state_dict.items()))


def _by_path(tree: Any) -> Iterable[tuple[str, str, Any]]:
    """Collections, of which torchvision's names know nothing, paths in them, and arrays."""
    for collection, inner in tree.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(inner):
            yield collection, _joined(path), leaf


def _joined(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _name(path: str) -> str:
    *module, array = path.removeprefix("network/").split("/")
    return ".".join([*module, _ARRAYS.get(array, array)])


def _map_size(name: str, flattened: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    layer = name.rpartition(".")[0]
    for pattern, size in flattened.items():
        if re.fullmatch(pattern, layer):
            return size
    return (1, 1)


def _torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    orders = {4: (3, 2, 0, 1), 2: (1, 0)}
    return tuple(shape[axis] for axis in orders.get(len(shape), range(len(shape))))


def _from_torch(array: np.ndarray, shape: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2:
        return array.reshape(len(array), -1, *size).transpose(2, 3, 1, 0).reshape(shape)
    return array


def _to_torch(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2:
        outputs = array.shape[1]
        return array.reshape(*size, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)
    return array


def _check(found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one error for all that does not fit."""
    faults = []
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            faults.append(f"missing: {name} {list(wanted[name])}")
        elif name not in wanted:
            faults.append(f"not wanted: {name} {list(found[name].shape)}")
        elif found[name].shape != wanted[name]:
            faults.append(f"{name} is {list(found[name].shape)}, should be {list(wanted[name])}")
        elif found[name].dtype not in _FLOATS:
            faults.append(f"{name} is of type {found[name].dtype}, should be of floating point")
    if faults:
        raise WeightsError(
            f"{len(faults)} tensors do not fit; the weights seem to be those of "
            f"{families.describe(found)}:\n  " + "\n  ".join(faults)
        )
