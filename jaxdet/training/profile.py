"""Where the time of a step goes, by the parts of a model.

    traced(step, ...) -> a folder, which TensorBoard and Perfetto read too
    read(folder) -> Profile: milliseconds a step of each part; `as_table` shows it

A trace has an event for each operation that ran, whose path of modules and named scopes the
compiled program knows. A moment belongs to the operations that run in it, in equal shares, so that
the times of a device add up to the time that passed.
"""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import tqdm

from jaxdet.training import trace_programs
from jaxdet.training.parallel import StepFn
from jaxdet.training.trace_programs import Operation

# Scopes that are a part wherever they are used; elsewhere the outermost name is the part.
PARTS = ("matching", "sampling", "nms", "roi_align", "roi_pool")
SUMS = "sums over devices"
WAITING = "waiting"  # Between two steps: the data, Python, or another process is slower.
GAPS = "gaps"  # Within a step no operation runs: what it costs to start each.
UNNAMED = "other"  # Of no module or scope.

# What runs inside of these has events of its own.
_CONTROL = ("while", "conditional", "call")
_LOOPS = re.compile(r"while|cond|scan|body|closed_call|branch_\d+_fun")


class Part(NamedTuple):
    """Milliseconds a step."""

    forward: float
    backward: float  # What is there for the gradient.


@dataclasses.dataclass(frozen=True)
class Profile:
    """Times of one step: means over steps and devices."""

    parts: Mapping[str, Part]
    """By name, the slowest first."""
    total: float
    """Milliseconds a step, from the beginning of the first to the end of the last: the sum of all
    parts."""
    n_steps: int
    """How many were traced."""


class Event(NamedTuple):
    """An operation that ran."""

    run: int  # Number of the program's run.
    start: float  # ns
    end: float
    operation: str


@contextlib.contextmanager
def traced(
    step: StepFn, *, first: int, last: int, folder: str | pathlib.Path, parts: Sequence[str] = PARTS
) -> Iterator[StepFn]:
    """A step that is traced at some of its calls; the table is printed after the last of them.

    Where the trace cannot be read, the reason is printed.

    Args:
      step: Compiled.
      first: The first call that is traced; above 1, since the first one compiles.
      last: The last call that is traced, unless the `with` block ends before it. After an error in
        it the trace stays, for `read`; there may be no time for the table.
      folder: For the trace.
      parts: As in `read`.

    Yields:
      A function that does what `step` does.

    Raises:
      ValueError: Where no call is between the two, or the first one is.
    """
    if not 1 < first <= last:
        raise ValueError(f"first must be above 1, and last not below it. Got {first} and {last}")
    calls, is_tracing, is_well, out = 0, False, False, None

    def stop(*, shown: bool) -> None:
        nonlocal is_tracing
        is_tracing = False
        jax.block_until_ready(out)
        jax.profiler.stop_trace()
        if shown:
            tqdm.tqdm.write(_readable(folder, parts))  # Beside a progress bar.

    def run(state: Any, batch: Any) -> Any:
        nonlocal calls, is_tracing, out
        calls += 1
        if calls == first:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(folder, profiler_options=options)
            is_tracing = True
        out = step(state, batch)
        if calls == last:
            stop(shown=True)
        return out

    try:
        yield run
        is_well = True
    finally:
        if is_tracing:
            stop(shown=is_well)
    if calls < first:
        tqdm.tqdm.write(f"Nothing was traced: there were {calls} calls, not {first}.")


def _readable(folder: str | pathlib.Path, parts: Sequence[str]) -> str:
    try:
        return as_table(read(folder, parts=parts))
    except Exception as fault:  # Neither ends a run nor hides what ended it.
        return f"The trace in {folder} cannot be read: {fault!r}"


def read(folder: str | pathlib.Path, *, parts: Sequence[str] = PARTS) -> Profile:
    """Reads a trace.

    Args:
      folder: Of the trace; where there are several, the newest is read.
      parts: Names of scopes that count apart from what they are used in.

    Returns:
      The times of the program that ran longest, of those that compute gradients if any does.

    Raises:
      ValueError: Where there is no trace, or no program in it.
    """
    files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    runs = _events(files[-1]) if files else {}
    if not runs:
        raise ValueError(f"There is no trace of a compiled program. Got {folder}")
    programs = trace_programs.programs(files[-1])
    known = {number: _operations(number, of_device, programs) for number, of_device in runs.items()}

    def rank(number: int) -> tuple[bool, float]:
        learns = any("transpose(" in operation.path for operation in known[number].values())
        return learns, sum(e.end - e.start for events in runs[number].values() for e in events)

    number = max(runs, key=rank)
    devices, operations = runs[number], known[number]
    total = 0.0
    times: dict[tuple[str, bool], float] = collections.defaultdict(float)
    for events in devices.values():
        scale = 1e-6 / len({event.run for event in events}) / len(devices)
        total += scale * (max(e.end for e in events) - min(e.start for e in events))
        for name, time in shares(events, operations).items():
            idle = name in (WAITING, GAPS)
            operation = operations.get(name, Operation("", ""))
            times[(name, False) if idle else part_of(operation, parts=parts)] += scale * time
    names = {name for name, _ in times}
    found = {name: Part(times[name, False], times[name, True]) for name in names}
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))
    return Profile(dict(ordered), total, len({event.run for event in events}))


def as_table(profile: Profile) -> str:
    """Shows the parts below each other.

    Args:
      profile: From `read`.
    """
    lines = [f"{'ms a step':20}{'forward':>10}{'backward':>10}{'share':>8}"]
    for name, (forward, backward) in profile.parts.items():
        share = (forward + backward) / profile.total
        lines.append(f"{name:20}{forward:10.2f}{backward:10.2f}{share:8.1%}")
    lines.append(f"{'all':20}{profile.total:20.2f}{1:8.1%}   ({profile.n_steps} steps)")
    return "\n".join(lines)


def _events(file: pathlib.Path) -> dict[int, dict[Any, list[Event]]]:
    """What ran, by the program's number and by device."""
    found: dict[int, dict[Any, list[Event]]] = {}
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" not in stats or "program_id" not in stats:
                    continue
                device = plane.name, stats.get("device_ordinal", 0)
                run, operation = stats.get("run_id", 0), str(stats["hlo_op"])
                of_program = found.setdefault(int(stats["program_id"]), {})
                of_program.setdefault(device, []).append(
                    Event(int(run), event.start_ns, event.end_ns, operation)
                )
    return found


def _operations(
    number: int,
    events: Mapping[Any, Sequence[Event]],
    programs: Mapping[int, Mapping[str, Operation]],
) -> Mapping[str, Operation]:
    """What ran: the program that has all of it. One from a cache of programs has a new number."""
    names = {event.operation for of_device in events.values() for event in of_device}

    def rank(candidate: int) -> tuple[int, bool, int]:
        program = programs[candidate]
        return len(names & program.keys()), candidate == number, -len(program)

    return programs[max(programs, key=rank)] if programs else {}


def shares(events: Sequence[Event], operations: Mapping[str, Operation]) -> dict[str, float]:
    """How long each operation ran; at moments of several, each has its share.

    Args:
      events: Of one device.
      operations: By name; loops and conditions have only the time in which nothing in them runs.

    Returns:
      Nanoseconds by operation, `WAITING` and `GAPS`, which add up to the time from the beginning of
      the first to the end of the last.
    """
    changes = [(e.start, 1, e.operation) for e in events]
    changes += [(e.end, -1, e.operation) for e in events]
    running, controlling = collections.Counter[str](), collections.Counter[str]()
    times: dict[str, float] = collections.defaultdict(float)
    before = min(changes)[0]
    for now, change, name in sorted(changes):
        if now > before:
            active = running or controlling
            for operation, count in active.items():
                times[operation] += (now - before) * count / active.total()
            if not active:
                times[GAPS] += now - before
            before = now
        known = operations.get(name)
        group = controlling if known and known.opcode in _CONTROL else running
        group[name] += change
        if not group[name]:
            del group[name]
    spans = _spans(events)
    times[WAITING] = sum(max(0, b[0] - a[1]) for a, b in itertools.pairwise(spans))
    times[GAPS] -= times[WAITING]
    return dict(times)


def _spans(events: Sequence[Event]) -> list[tuple[float, float]]:
    """From when to when each run lasted."""
    spans: dict[int, tuple[float, float]] = {}
    for event in events:
        start, end = spans.get(event.run, (event.start, event.end))
        spans[event.run] = min(start, event.start), max(end, event.end)
    return sorted(spans.values())


def part_of(operation: Operation, *, parts: Sequence[str] = PARTS) -> tuple[str, bool]:
    """The name of an operation's part, and whether it is there for the gradient.

    Args:
      operation: From `trace_programs.programs`.
      parts: As in `read`.
    """
    if operation.opcode.startswith("all-reduce"):
        return SUMS, False
    *steps, _ = operation.path.split("/")  # The last one is the operation itself.
    # jit(f) is a function, Model.method is no part of it; vmap(nms) is the scope nms.
    scopes = [re.sub(r"^(\w+\()+|\)+$", "", step) for step in steps if "jit(" not in step]
    scopes = [scope for scope in scopes if scope and scope[0] != "_" and "." not in scope]
    chosen = [scope for scope in scopes if scope in parts]
    outermost = [scope for scope in scopes[:1] if not _LOOPS.fullmatch(scope)]
    name = (chosen[-1:] or outermost or [UNNAMED])[0]
    return name, "transpose(" in operation.path
