"""State dicts on disk: `.pth` and `.pt` of torch, and `.safetensors`."""

import os
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxdet import atomic
from jaxdet.weights import torch_file
from jaxdet.weights.tensor_pickle import WeightsError

TORCH = (".pth", ".pt")
SAFE = ".safetensors"
SUFFIXES = (*TORCH, SAFE)
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a state dict without running code from its file.

    Args:
      path: A file with one of `SUFFIXES`.

    Returns:
      Arrays by name, in the types that they are stored in; and what texts the file has beside them
      (`.safetensors` only).

    Raises:
      WeightsError: Where it is cut off or something else; the message says what it seems to be.
    """
    path = pathlib.Path(path)
    if path.suffix in TORCH:
        return torch_file.read(path), {}
    if path.suffix != SAFE:
        raise WeightsError(f"{path}: weights are read from {', '.join(SUFFIXES)}.")
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise WeightsError(f"{path}: cannot be read ({fault.strerror}).") from fault
    try:
        tensors = safetensors.deserialize(data)
        with safetensors.safe_open(path, "np") as file:
            texts = file.metadata() or {}
    except safetensors.SafetensorError as fault:
        seems = torch_file.what_it_seems(data)
        raise WeightsError(
            f"{path}: cut off, or {seems}, not a safetensors file ({fault})."
        ) from fault
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise WeightsError(f"{path}: {name} is of type {tensor['dtype']}.")
        numbers = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
        arrays[name] = numbers.reshape(tensor["shape"])
    return arrays, texts


def write(
    path: str | os.PathLike,
    state_dict: Mapping[str, np.ndarray],
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dict, whole or not at all.

    In torch, `.pth` is read by `torch.load(path)`, `.safetensors` by
    `safetensors.torch.load_file(path)`.

    Args:
      path: A file with one of `SUFFIXES`, made or replaced.
      state_dict: Arrays by name.
      texts: To write beside them; `.pth` has no place for any.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}. Got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in TORCH:
        torch_file.write(path, state_dict)
        return
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    with atomic.replacing(path) as unfinished:
        safetensors.numpy.save_file(arrays, unfinished, dict(texts or {}))
