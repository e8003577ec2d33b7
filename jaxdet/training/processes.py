"""Several processes that train one model: how they find each other, and what they agree on.

Each process has devices of its own and reads its own share of a batch; steps sum over the devices
of all. What is written down is written by the first process alone.
"""

import contextlib
import dataclasses
import os
import pathlib
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.training import signals

Result = TypeVar("Result")

HEARTBEAT = 30  # Seconds without a sign of life after which a process is given up.
CHUNK = 1 << 26  # Bytes sent at once: a large object must not need as much device memory.

_ON_SIGNAL = [128 + number for number in (signal.SIGTERM, signal.SIGINT)]


@dataclasses.dataclass(frozen=True)
class Processes:
    """Who trains together; scripts nest it, and its fields are flags."""

    coordinator: str | None = None
    """HOST:PORT of the first process, the same for all; None for a process of its own."""
    num_processes: int = 1
    """How many processes there are."""
    process_id: int = 0
    """Which of them this is, 0 for the first."""
    cluster: bool = False
    """Whether SLURM, Open MPI, Kubernetes or a TPU pod started all and knows the three above."""


# Flags in which processes differ, and a run that is gone on with.
FREE = tuple(field.name for field in dataclasses.fields(Processes))


@contextlib.contextmanager
def together(options: Processes, *, out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Trains with the other processes while the context lasts; begins before anything is computed.

    An error ends the process at once, and with it all others: they would wait for it in vain.
    `SystemExit` with the code of a signal, on which all stop together, lets them end as usual.

    Args:
      options: Who they are; nothing happens for a process of its own.
      out: Where the run writes.

    Yields:
      Where this process writes: `out` in the first one; in the others, which print nothing but
      errors, a folder that is deleted at the end. So a script is written as for one process.

    Raises:
      ValueError: Where the numbers name no process.
    """
    start(options)
    if jax.process_count() == 1:
        yield out
        return
    with contextlib.ExitStack() as stack:
        if not is_first():
            out = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield out
        except BaseException as error:
            if isinstance(error, SystemExit) and error.code in (0, None, *_ON_SIGNAL):
                raise
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            stack.close()
            sys.stderr.flush()
            signals.end_process(1)  # What else runs at its end waits for the others.


def start(options: Processes) -> None:
    """Joins the other processes; comes before anything is computed.

    Args:
      options: Who they are; nothing happens for a process of its own.

    Raises:
      ValueError: Where the numbers name no process.
    """
    if options.cluster:
        known: dict[str, Any] = {}
    elif options.coordinator is not None:
        if not 0 <= options.process_id < options.num_processes:
            raise ValueError(
                "process_id must be at least 0 and below num_processes. "
                f"Got {options.process_id} of {options.num_processes}"
            )
        known = {
            "coordinator_address": options.coordinator,
            "num_processes": options.num_processes,
            "process_id": options.process_id,
            "cluster_detection_method": "deactivate",
        }
    elif options.num_processes != 1 or options.process_id != 0:
        raise ValueError(
            "num_processes and process_id need the first process's coordinator, HOST:PORT. "
            f"Got {options.num_processes} and {options.process_id}"
        )
    else:
        return
    # It would take SIGTERM away from the loop, and from Python before there is one.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**known, heartbeat_timeout_seconds=HEARTBEAT)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Result]) -> Result:
    """Calls a function in the first process alone; all get its result, or its error.

    Args:
      function: Its result must pickle. Other processes wait for it.

    Returns:
      What it returned.

    Raises:
      Exception: What it raised, in every process; a `RuntimeError` that tells it where an error
        of its kind cannot be sent.
    """
    if jax.process_count() == 1:
        return function()
    result, error = None, None
    if is_first():
        try:
            result = function()
        except Exception as raised:
            error = raised
    sent = _send((result, _sendable(error)), source=0)
    if error is not None or sent[1] is not None:
        raise error or sent[1]
    return sent[0]


def gather(value: Result) -> list[Result]:
    """Collects a value of each process, in all of them.

    Args:
      value: This process's; it must pickle.

    Returns:
      The values of the first, second, ... process.
    """
    if jax.process_count() == 1:
        return [value]
    return [_send(value, source=i) for i in range(jax.process_count())]


class Votes:
    """What the processes say at each step, known to all of them one step later.

    The lateness lets a step start before the one before it has ended.
    """

    def __init__(self) -> None:
        self._before: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("devices",))
            self._each = NamedSharding(mesh, PartitionSpec("devices"))
            self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, vote: int) -> int:
        """The largest vote; a process of its own has its vote back at once.

        Args:
          vote: This process's, at this step.

        Returns:
          That of the step before, over all processes; 0 at first.
        """
        if jax.process_count() == 1:
            return vote
        votes = np.full(jax.local_device_count(), vote, np.int32)
        known, self._before = (
            self._before,
            self._max(jax.make_array_from_process_local_data(self._each, votes)),
        )
        return 0 if known is None else int(known.addressable_data(0))


def _sendable(error: Exception | None) -> Exception | None:
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"The first process stopped: {type(error).__name__}: {error}")
    return error


def _send(value: Any, *, source: int) -> Any:
    """One process's value to all: its bytes, summed with the zeros of the others."""
    is_source = jax.process_index() == source
    payload = np.frombuffer(pickle.dumps(value) if is_source else b"", np.uint8)
    n_chunks, rest = divmod(len(payload), CHUNK)
    n_chunks, rest = _broadcast(np.array([n_chunks, rest], np.int32), is_source=is_source)
    # Few sizes, so that few programs are compiled.
    sizes = [CHUNK] * int(n_chunks) + [1 << int(rest).bit_length()]
    received = []
    for number, size in enumerate(sizes):
        chunk = payload[number * CHUNK : number * CHUNK + size]
        padded = np.pad(chunk, (0, size - len(chunk)))
        received.append(_broadcast(padded, is_source=is_source))
    return pickle.loads(np.concatenate(received).tobytes())


def _broadcast(array: np.ndarray, *, is_source: bool) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=is_source))
