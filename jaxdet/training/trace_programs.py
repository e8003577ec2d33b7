"""What the operations of a trace belong to: the compiled programs that a trace file holds.

A file of `jax.profiler` is a protocol buffer, `XSpace`. What of it is needed, by field number:

    XSpace 1 -> XPlane 2 name, 4 -> map entry 2 -> XEventMetadata 2 name, 5 -> XStat 6 bytes
    these bytes: HloProto 1 -> HloModule 3 -> HloComputation 5 id, 2 -> HloInstruction
    HloInstruction 1 name, 2 opcode, 7 -> OpMetadata 2 op_name, 35 id, 36 operands, 38 computations

`jax.profiler.ProfileData` reads the events themselves, but not this part.
"""

import collections
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

Message = dict[int, list[Any]]


class Operation(NamedTuple):
    """One instruction of a compiled program."""

    opcode: str
    path: str  # Transformations, modules and scopes it comes from, "" where none is known.


def programs(file: str | pathlib.Path) -> dict[int, dict[str, Operation]]:
    """Reads the compiled programs of a trace.

    Fused operations without a path of their own have the one that is most common within them; what
    the compiler put between operations has that of an operand.

    Args:
      file: `*.xplane.pb`.

    Returns:
      By the program's number, its operations by name.
    """
    found = {}
    for plane in _fields(memoryview(pathlib.Path(file).read_bytes()))[1]:
        plane = _fields(plane)
        if bytes(plane[2][0]) != b"/host:metadata":
            continue
        for entry in plane[4]:
            event = _fields(_fields(entry)[2][0])
            number = _text(event[2]).rpartition("(")[2].rstrip(")")  # "jit_step(12)"
            for stat in map(_fields, event[5]):
                if 6 in stat and number.isdigit():
                    found[int(number)] = _operations(_fields(_fields(stat[6][0])[1][0]))
    return found


def _operations(module: Message) -> dict[str, Operation]:
    operations: dict[str, Operation] = {}
    by_id: dict[int, str] = {}  # Path.
    within: dict[int, str] = {}  # The most common path of a computation.
    # Both computations and instructions come after what they use.
    for computation in map(_fields, module[3]):
        paths = []
        for instruction in map(_fields, computation[2]):
            path = _text(_fields(instruction[7][0]).get(2)) if 7 in instruction else ""
            used = [within.get(i, "") for i in _numbers(instruction.get(38))]
            used += [by_id.get(i, "") for i in _numbers(instruction.get(36))]
            # What is computed from a gradient is there for the gradient.
            used.sort(key=lambda path: "transpose(" not in path)
            by_id[instruction[35][0]] = path or next(filter(None, used), "")
            paths.append(path)
            operations[_text(instruction[1])] = Operation(
                _text(instruction[2]), by_id[instruction[35][0]]
            )
        counted = collections.Counter(filter(None, paths)).most_common(1)
        within[computation[5][0]] = counted[0][0] if counted else ""
    return operations


def _fields(data: Any) -> Message:
    """The values of a message by field number: integers, or bytes of what is inside."""
    fields: Message = collections.defaultdict(list)
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + length], at + length
        fields[number].append(value)
    return dict(fields)


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _numbers(values: list[Any] | None) -> Iterator[int]:
    """Repeated integers, packed or not."""
    for value in values or ():
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            yield number


def _text(values: list[Any] | None) -> str:
    return bytes(values[0]).decode() if values else ""
