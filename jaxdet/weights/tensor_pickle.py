"""The pickles in torch's files: read without running anything, and written, without torch.

A pickle can call whatever Python can import. Here it is first read opcode by opcode, and refused
unless all that it names is what rebuilds tensors; those become descriptions, no memory is made.
"""

import io
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# These make objects by other means than REDUCE, or import by number; torch writes none of them.
FORBIDDEN = frozenset({"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"})
# Each counted wherever it is referred to: tuples of tuples, looked up in a dictionary, would keep
# Python busy for years.
MAX_OBJECTS = 10_000_000


class WeightsError(ValueError):
    """A file that is not what it should be; says which, and what it seems to be."""


class Storage(NamedTuple):
    """Numbers in a row that tensors share."""

    key: str
    dtype: np.dtype
    length: int
    offset: int = 0  # Of a view on another storage, numbers.


class Tensor(NamedTuple):
    """A window on a storage, not looked at yet; its numbers may be wrong."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(data: bytes, position: int) -> tuple[Any, dict[str, Storage], int]:
    """Reads one pickle out of a file's bytes.

    Args:
      data: The file.
      position: Where the pickle begins.

    Returns:
      Its object, with `Tensor` for tensors; the storages that it refers to, by key; and where what
      follows begins.

    Raises:
      WeightsError: Where it is damaged, or names anything to import but what rebuilds tensors.
    """
    stream = io.BytesIO(data)
    stream.seek(position)
    try:
        _check_opcodes(stream)
        end = stream.tell()
        unpickler = _TensorUnpickler(io.BytesIO(data[position:end]))
        return unpickler.load(), unpickler.storages, end
    except WeightsError:
        raise
    except Exception as fault:  # Whatever a damaged pickle makes its reader trip over.
        raise WeightsError(f"the pickle in it is cut off or damaged ({fault}).") from fault


def _check_opcodes(stream: io.BytesIO) -> None:
    """Reads up to a pickle's end without running it."""
    stack: list[int | None] = []  # How many objects each object is; None for a mark.
    memo: dict[int, int | None] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in FORBIDDEN:
            raise WeightsError(f"its pickle uses {opcode.name}, which no tensor needs: refused.")
        if opcode.name == "GLOBAL":
            _allowed(*str(argument).split(" ", 1))
        # The reader's table of objects is as long as the largest number in it.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise WeightsError("the pickle in it is damaged (it numbers more than it holds).")
        _count_objects(opcode, argument, stack, memo)


def _count_objects(
    opcode: pickletools.OpcodeInfo,
    argument: Any,
    stack: list[int | None],
    memo: dict[int, int | None],
) -> None:
    """Does to the stack what an opcode does to that of the reader."""
    if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if argument is None else int(argument)] = stack[-1]
    elif opcode.name == "DUP":
        stack.append(stack[-1])
    elif opcode.name == "MARK":
        stack.append(None)
    else:
        total, before = 1, opcode.stack_before
        if pickletools.markobject in before:
            while (top := stack.pop()) is not None:
                total += top
            before = before[: before.index(pickletools.markobject)]
        total += sum(stack.pop() or 0 for _ in before)
        if total > MAX_OBJECTS:
            raise WeightsError(f"it holds more than {MAX_OBJECTS} objects: refused.")
        stack.extend(total for _ in opcode.stack_after)


class _RebuildTensor:
    """Callable, but without attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        sizes = (*shape, *strides, offset)
        if not isinstance(storage, Storage) or not all(isinstance(n, int) for n in sizes):
            raise WeightsError("a tensor in it is damaged.")
        return Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
} | {("torch", name): name for name in DTYPES}


def _allowed(module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
        raise WeightsError(
            f"its pickle imports {module}.{name}, which rebuilds no tensor: refused. Save the "
            "state dict alone: torch.save(model.state_dict(), ...)."
        )
    return _ALLOWED[module, name]


class _TensorUnpickler(pickle.Unpickler):
    """Builds containers and descriptions of tensors, nothing else."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _allowed(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise WeightsError("it refers to something that is no storage.")
        _, kind, key, _, length, *view = pid
        if not isinstance(kind, str) or not isinstance(key, str):
            raise WeightsError("it refers to a storage that has no name.")
        root = Storage(key, DTYPES[kind], int(length))
        self.storages[root.key] = root
        if view and view[0] is not None:  # In old files: (key of the view, offset, length).
            _, offset, length = view[0]
            return root._replace(offset=int(offset), length=int(length))
        return root


def dump(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """Returns what torch's pickler writes for a state dict whose arrays are contiguous.

    Storages are numbered from 0 on, one an array.

    Args:
      state_dict: Arrays by name.

    Raises:
      WeightsError: Where torch has no storage for an array's type.
    """
    storages = {dtype: name for name, dtype in DTYPES.items()}
    ordered = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO + b"\x02", ordered, pickle.MARK]
    for key, (name, array) in enumerate(state_dict.items()):
        storage = storages.get(array.dtype.newbyteorder("="))
        if storage is None:
            raise WeightsError(f"{name}: torch has no tensors of type {array.dtype}.")
        strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
        parts += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK,
            pickle.MARK + _text("storage") + f"ctorch\n{storage}\n".encode(),
            _text(str(key)) + _text("cpu") + _integer(array.size) + pickle.TUPLE + pickle.BINPERSID,
            _integer(0) + _integers(array.shape) + _integers(strides) + pickle.NEWFALSE + ordered,
            pickle.TUPLE + pickle.REDUCE,
        ]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _integers(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE
