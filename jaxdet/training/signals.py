"""SIGTERM and SIGINT: what is done is saved, and the process gone, within seconds.

Python runs a handler only between two of its own instructions, so never while XLA compiles. A
thread therefore watches beside the run, and ends the process where the run does not come to it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

GRACE = 8.0  # Seconds; who stops a process may kill it after ten.
_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to stop, and saved before it did.

    Attributes:
      step: Updates made so far.
      exit_code: What a shell expects of a process that ended on this signal.
    """

    def __init__(self, step: int, signum: int):
        super().__init__(f"Stopped by {signal.Signals(signum).name} after step {step}.")
        self.step = step
        self.exit_code = 128 + signum


class Stops:
    """The signals that came, and what they may do now."""

    def __init__(self):
        self.received: list[int] = []
        self._step: int | None = None  # Updates made, while nothing is in the making.
        self._saving = threading.Lock()
        self._over = threading.Event()

    @contextlib.contextmanager
    def at_once(self, step: int) -> Iterator[None]:
        """What is done here may end anywhere: nothing but time is lost.

        Args:
          step: Updates made so far.

        Raises:
          Interrupted: Wherever the signal finds it.
        """
        self._step = step
        try:
            if self.received:
                raise Interrupted(step, self.received[0])
            yield
        finally:
            self._step = None

    def saving(self) -> contextlib.AbstractContextManager[Any]:
        """What is done here is finished, even if it takes longer than there is time."""
        return self._saving

    def receive(self, signum: int) -> None:
        """Takes a signal.

        Args:
          signum: Its number.
        """
        self.received.append(signum)
        if self._step is not None:
            raise Interrupted(self._step, signum)

    def leave_late(self, signum: int, grace: float) -> None:
        """Ends the process unless the run is over in time.

        Args:
          signum: What came.
          grace: Seconds.
        """
        if self._over.wait(grace):
            return
        with self._saving:
            if not self._over.wait(0.5):  # The run is over where that was its last checkpoint.
                text = (
                    f"\nStopped by {signal.Signals(signum).name} in the midst of its work, which "
                    f"had not come to an end after {grace:g} s. The same command goes on "
                    "from the last checkpoint, if there is one.\n"
                )
                os.write(2, text.encode())
                end_process(128 + signum)

    def end(self) -> None:
        """The run is over."""
        self._over.set()


@contextlib.contextmanager
def stop_signals(*, grace: float = GRACE) -> Iterator[Stops]:
    """Listens for SIGTERM and SIGINT; after the first, the next one has its usual effect.

    Args:
      grace: Seconds after which the process ends wherever it is, except in `saving`.
    """
    stops = Stops()
    if threading.current_thread() is not threading.main_thread():
        yield stops  # Python lets only the main thread listen.
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(signum: int, _: Any) -> None:
        restore()
        stops.receive(signum)

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    old = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read_end, stops, grace), daemon=True)
    watch.start()
    for number in before:
        signal.signal(number, receive)
    try:
        yield stops
    finally:
        restore()
        stops.end()
        signal.set_wakeup_fd(old)
        os.close(write_end)
        watch.join()
        os.close(read_end)


def end_process(code: int) -> NoReturn:
    """Ends the process wherever it is, and its children, such as workers that read data.

    Args:
      code: What the process ends with.
    """
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _watch(read_end: int, stops: Stops, grace: float) -> None:
    while number := os.read(read_end, 1):  # Nothing is read once the other end is closed.
        if number[0] in _NUMBERS:
            stops.leave_late(number[0], grace)
            return
