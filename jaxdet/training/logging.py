"""What a run writes down: rows of numbers, pictures, and its results."""

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

ROWS = "metrics.jsonl"
BOARD = "tensorboard"
_Messages: Any = event_pb2  # Type checkers do not know its names.


class WriteError(OSError):
    """A file could not be written; the message names it, as the system's does not."""


class MetricsLog:
    """Numbers and pictures by step: `metrics.jsonl` and files that TensorBoard reads."""

    def __init__(self, directory: str | pathlib.Path):
        """Goes on with what is in the directory, or begins.

        Args:
          directory: Of this run; rows lie in it, TensorBoard's files in `tensorboard/`.

        Raises:
          WriteError: Here and below, where there is no room, for example.
        """
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        with _named(self.directory / ROWS):
            self._rows = (self.directory / ROWS).open("a", encoding="utf-8")
        self._board = self._open_board()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one row, on disk when this returns.

        Args:
          step: Updates made so far.
          values: Numbers by name; "a/b" groups in TensorBoard. NaN, such as the AP of a class that
            does not occur, becomes null.
        """
        numbers = _plain(values)
        with _named(self.directory / ROWS):
            self._rows.write(json.dumps({"step": step} | numbers) + "\n")
            self._rows.flush()
        self._add_events(
            *(
                {"step": step, "summary": summary.scalar(name, value)}
                for name, value in numbers.items()
                if value is not None
            )
        )

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds one picture for TensorBoard.

        Args:
          step: Updates made so far.
          name: What it shows.
          pixels: RGB, 0 to 255.
        """
        picture = summary.image(name, pixels, dataformats="HWC")
        self._add_events({"step": step, "summary": picture})

    def truncate(self, step: int, *, evaluated: bool = True) -> None:
        """Forgets rows beyond a step, and a last row that was cut while being written.

        Args:
          step: Of the checkpoint the run goes on from.
          evaluated: Whether its evaluation is done; if not, its row is forgotten, too.
        """

        def stays(row: dict[str, Any]) -> bool:
            if row["step"] == step and not evaluated:
                return not any(name.startswith("eval/") for name in row)
            return row["step"] <= step

        kept = [row for row in read_rows(self.directory) if stays(row)]
        self.close()
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.directory / ROWS, text)
        with _named(self.directory / ROWS):
            self._rows = (self.directory / ROWS).open("a", encoding="utf-8")
        self._board = self._open_board()
        begun = _Messages.SessionLog(status=_Messages.SessionLog.START)
        # TensorBoard then forgets what lies behind it in earlier files.
        self._add_events({"step": step + 1, "session_log": begun})

    def close(self) -> None:
        """Lets go of the files; may be called again."""
        if not self._rows.closed:
            with _named(self.directory / ROWS):
                self._rows.close()
            with _named(self.directory / BOARD):
                self._board.close()

    def _open_board(self) -> EventsWriter:
        folder = self.directory / BOARD
        with _named(folder):
            folder.mkdir(exist_ok=True)
            # Its names have seconds, in which a run may begin again.
            return EventsWriter(str(folder / "events"), f".{time.time_ns()}")

    def _add_events(self, *events: Mapping[str, Any]) -> None:
        """Not by tensorboardX's thread: once a full disk has ended it, a run waits for good."""
        with _named(self.directory / BOARD):
            for fields in events:
                self._board.write_event(_Messages.Event(wall_time=time.time(), **fields))
            self._board.flush()


def read_rows(directory: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of a run.

    Args:
      directory: Of the run.

    Returns:
      One dict a row with "step" and the numbers; a last row that was cut is left out.

    Raises:
      ValueError: Where a row other than the last cannot be read.
    """
    lines = (pathlib.Path(directory) / ROWS).read_text(encoding="utf-8").split("\n")
    rows = []
    for i, line in enumerate(lines[:-1]):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"Row {i + 1} of {directory} is not JSON. Got {line!r}") from error
    return rows  # What follows the last line break was cut while being written.


def seconds(*directories: str | pathlib.Path) -> float:
    """How long runs have taken up to their last rows, over all their starts, together.

    Args:
      directories: Of the runs; one that has not begun has taken no time.
    """
    begun = [directory for directory in directories if (pathlib.Path(directory) / ROWS).is_file()]
    return math.fsum(
        max((row.get("seconds", 0.0) for row in read_rows(directory)), default=0.0)
        for directory in begun
    )


def write_results(
    path: str | pathlib.Path,
    metrics: Mapping[str, Any],
    *,
    pictures: str,
    begun: float,
    seed: int,
) -> None:
    """Writes what came out of a run, and what it takes to run it again.

    Args:
      path: Of the file, such as `runs/x/results.json`.
      metrics: Final numbers by name.
      pictures: Name of the source that they are of.
      begun: When the run began, by `time.perf_counter`; earlier if it was begun before.
      seed: Of the run.
    """
    names = ("jaxdet", "jax", "jaxlib", "flax", "optax", "numpy")
    results = {
        "metrics": _plain(metrics),
        "pictures": pictures,
        "seconds": time.perf_counter() - begun,
        "seed": seed,
        "command": sys.argv,
        "versions": {name: _version(name) for name in names}
        | {"python": platform.python_version()},
    }
    write_atomically(path, json.dumps(results, indent=2) + "\n")


def write_atomically(path: str | pathlib.Path, text: str) -> None:
    """Writes a file that is either the old one or the new one, never a part.

    Args:
      path: Of the file; its directory is made.
      text: All of it.

    Raises:
      WriteError: Where there is no room, for example; the old file stays.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} could not be written: {error}") from error


def _plain(values: Mapping[str, Any]) -> dict[str, float | None]:
    """JSON has no NaN."""
    numbers = {name: float(value) for name, value in values.items()}
    return {name: None if math.isnan(x) else x for name, x in numbers.items()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # Run from a checkout that is not installed.
