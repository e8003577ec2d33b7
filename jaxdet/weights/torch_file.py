"""Checkpoint files of torch, read and written without torch and without running code from them.

    zip      since torch 1.6: ARCHIVE/data.pkl, then one entry ARCHIVE/data/KEY for each storage
    legacy   until then: five pickles end to end (magic number, version, machine, object, keys of
             storages), then each storage as its length and its numbers

A tensor is a window on a storage: what a file says of sizes is believed once it is seen to lie
inside the file, and nothing is copied.
"""

import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxdet import atomic
from jaxdet.weights import tensor_pickle
from jaxdet.weights.tensor_pickle import Storage, Tensor, WeightsError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
MAX_RANK = 16
MAX_SIZE = 1 << 33  # Numbers; strides of 0 make much out of little.
# Where training scripts put a state dict among other things.
NESTED = ("model", "state_dict", "model_state_dict", "model_ema")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the state dict of a `.pth` file of either format.

    Args:
      path: The file. A dictionary with the state dict under "model", "state_dict" or the like is
        looked into.

    Returns:
      Arrays by name, as they are stored (bfloat16 is that of `ml_dtypes`); read-only, and those
      that share a storage share memory.

    Raises:
      WeightsError: Where the file is cut off, of another kind, or names anything to import but what
        rebuilds tensors; the message says what.

    Departures:
      Neither tensors on quantized or sparse storages nor the tar files of torch 0.1 are read.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise WeightsError(f"{path}: cannot be read ({fault.strerror}).") from fault
    try:
        if data[:4] == b"PK\x03\x04":
            found, storages = _read_zip(data)
        else:
            found, storages = _read_legacy(data)
        tensors = _state_dict(found)
        return {name: _view(name, tensor, storages) for name, tensor in tensors.items()}
    except WeightsError as fault:
        raise WeightsError(f"{path}: {fault}") from fault
    except Exception as fault:  # Whatever a damaged file makes its readers trip over.
        raise WeightsError(f"{path}: damaged ({type(fault).__name__}: {fault}).") from fault


def _read_zip(data: bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as fault:
        raise WeightsError(
            f"the file is cut off or damaged: it starts as a zip archive of torch, but {fault}."
        ) from fault
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        kind = "TorchScript" if any(n.endswith("/constants.pkl") for n in entries) else "unknown"
        raise WeightsError(
            f"a zip archive without one data.pkl ({kind}), not a file of torch.save."
        )
    folder = pickles[0].removesuffix("data.pkl")

    def entry(name: str) -> bytes:
        info = entries.get(folder + name)
        if info is None:
            raise WeightsError(f"the archive lacks {folder + name}.")
        # torch does not compress; a compressed entry may grow without limit.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
            raise WeightsError(f"{info.filename} is compressed, which torch does not do.")
        try:
            return archive.read(info)
        except Exception as fault:
            raise WeightsError(f"{info.filename} is damaged ({fault}).") from fault

    stored_order = entry("byteorder") if folder + "byteorder" in entries else b"little"
    order = {b"little": "<", b"big": ">"}.get(stored_order)
    if order is None:
        raise WeightsError(f"its byte order is {stored_order[:20]!r}.")
    read_storages: dict[str, np.ndarray] = {}

    def storage(wanted: Storage) -> np.ndarray:
        if wanted.key not in read_storages:
            numbers = entry(f"data/{wanted.key}")
            read_storages[wanted.key] = np.frombuffer(numbers, np.uint8)
        return _numbers(read_storages[wanted.key], wanted, order)

    found, _, _ = tensor_pickle.load(entry("data.pkl"), 0)
    return found, storage


def _read_legacy(data: bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    try:
        magic, _, position = tensor_pickle.load(data, 0)
    except WeightsError as fault:
        raise WeightsError(f"{what_it_seems(data)}, not a file of torch.save.") from fault
    if magic != MAGIC_NUMBER:
        raise WeightsError(f"{what_it_seems(data)}, not a file of torch.save.")
    _, _, position = tensor_pickle.load(data, position)  # The format's version.
    _, _, position = tensor_pickle.load(data, position)  # The machine; numbers are little-endian.
    found, seen, position = tensor_pickle.load(data, position)
    keys, _, position = tensor_pickle.load(data, position)
    if not isinstance(keys, list) or not all(key in seen for key in keys):
        raise WeightsError("the list of its storages is damaged.")
    buffers: dict[str, np.ndarray] = {}
    everything = np.frombuffer(data, np.uint8)
    for key in keys:
        if position + 8 > len(data):
            raise WeightsError(
                f"the file is cut off after {len(data)} bytes, before storage {key}."
            )
        (length,) = struct.unpack_from("<q", data, position)
        size = length * seen[key].dtype.itemsize
        position += 8
        if length < 0 or position + size > len(data):
            raise WeightsError(
                f"the file is cut off: storage {key} has {length} numbers, {len(data)} bytes are "
                "not enough for them."
            )
        buffers[key] = everything[position : position + size]
        position += size

    def storage(wanted: Storage) -> np.ndarray:
        if wanted.key not in buffers:
            raise WeightsError(f"storage {wanted.key} is missing.")
        return _numbers(buffers[wanted.key], wanted, "<")

    return found, storage


def _numbers(buffer: np.ndarray, wanted: Storage, order: str) -> np.ndarray:
    """The storage's bytes as numbers of its type."""
    if buffer.size % wanted.dtype.itemsize or buffer.size < wanted.length * wanted.dtype.itemsize:
        raise WeightsError(
            f"storage {wanted.key} should hold {wanted.length} numbers of type "
            f"{wanted.dtype.name}, it has {buffer.size} bytes."
        )
    native = "<" if np.little_endian else ">"
    if order != native:
        return buffer.view(f"u{wanted.dtype.itemsize}").byteswap().view(wanted.dtype)
    return buffer.view(wanted.dtype)


def _view(name: str, tensor: Tensor, storages: Callable[[Storage], np.ndarray]) -> np.ndarray:
    """The window of a tensor, once it is seen to lie inside its storage."""
    numbers = storages(tensor.storage)
    start = tensor.storage.offset + tensor.offset
    whole = (start, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > MAX_RANK:
        raise WeightsError(f"{name}: shape {tensor.shape} has strides {tensor.strides}.")
    if min(whole) < 0 or math.prod(tensor.shape) > MAX_SIZE:
        raise WeightsError(f"{name}: shape {tensor.shape}, strides {tensor.strides}, from {start}.")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, tensor.storage.dtype)
    last = start + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if last >= numbers.size:
        raise WeightsError(
            f"{name}: shape {tensor.shape} with strides {tensor.strides} from {start} on reaches "
            f"beyond its storage of {numbers.size} numbers."
        )
    steps = tuple(stride * numbers.itemsize for stride in tensor.strides)
    window = np.lib.stride_tricks.as_strided(numbers[start:], tensor.shape, steps, writeable=False)
    return window


def _state_dict(found: Any) -> dict[str, Tensor]:
    """The dictionary of tensors, or the one inside what a training script saved."""
    if isinstance(found, dict):
        for key in NESTED:
            if isinstance(inner := dict.get(found, key), dict):
                found = inner
                break
        items = dict.items(found)  # What a pickle may have set as attributes is not asked.
        if items and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in items):
            return dict(items)
        held = ", ".join(f"{str(k)[:40]} ({type(v).__name__})" for k, v in list(items)[:5])
        raise WeightsError(f"it holds a dictionary, but not of tensors alone: {held or 'empty'}.")
    raise WeightsError(f"it holds a {type(found).__name__}, not a state dict.")


def what_it_seems(data: bytes) -> str:
    """Returns the kind of a foreign file, told by its first bytes.

    Args:
      data: The file, or its first 300 bytes.
    """
    kinds = {
        b"\x89HDF": "an HDF5 file (Keras?)",
        b"\xff\xd8\xff": "a JPEG picture",
        b"\x89PNG": "a PNG picture",
        b"\x1f\x8b": "a gzip file",
        b"<": "an HTML or XML page (a failed download?)",
        b"{": "a JSON file",
        b"\x93NUMPY": "a NumPy array",
        b"PK\x03\x04": "a zip archive (a file of torch?)",
        b"\x80": "a pickle",
        b"version https://git-lfs": "a pointer of Git LFS, in place of the file",
    }
    for start, kind in kinds.items():
        if data.startswith(start):
            return kind
    if data[257:262] == b"ustar":
        return "a tar archive (torch 0.1?)"
    (header,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    if data[8:9] == b"{" and header < 1 << 30:
        return "a safetensors file under another name"
    return "empty" if not data else "a file of unknown kind"


def write(path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a `.pth` file, whole or not at all, which `torch.load` reads as a state dict.

    Args:
      path: The file, made or replaced.
      state_dict: Arrays by name.

    Raises:
      WeightsError: Where torch has no storage for an array's type.
    """
    with (
        atomic.replacing(path) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr("archive/data.pkl", tensor_pickle.dump(state_dict))
        archive.writestr("archive/byteorder", b"little")
        for key, array in enumerate(state_dict.values()):
            numbers = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            archive.writestr(f"archive/data/{key}", numbers.tobytes())
        archive.writestr("archive/version", b"3\n")
