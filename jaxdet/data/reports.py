"""What is wrong in somebody's files: faults, which stop or cost a picture, and remarks."""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from jaxdet.data.records import DataError

SHOWN = 10  # Faults that an error message lists.
SHOWN_PLACES = 5  # Places that a note lists.

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Remarks of the readers: what happened to how many.
EMPTY = "Boxes without area, left out"
CLIPPED = "Boxes that reached beyond their picture, clipped"
KEYPOINTS_OUTSIDE = "Keypoints outside of their picture, taken as not labelled"


@dataclasses.dataclass
class Report:
    """Collects while a data set is read, so that one run tells all that is wrong with it."""

    faults: list[str] = dataclasses.field(default_factory=list)
    """Each with its file, its field and what to do."""
    bad: set[Hashable] = dataclasses.field(default_factory=set)
    """Which pictures have faults, by the reader's own key."""
    remarks: dict[str, list[str]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    """By what it was: places, each a file and a field."""

    @contextlib.contextmanager
    def noting(self, *, picture: Hashable = None) -> Iterator[None]:
        """Goes on after a `DataError` inside, which becomes a fault of the picture."""
        try:
            yield
        except DataError as error:
            self.fault(str(error), picture=picture)

    def each(
        self, picture: Hashable, items: Iterable[_Item], read: Callable[[_Item], _Result]
    ) -> list[_Result]:
        """What `read` makes of the items of a picture, without those in which it finds faults."""
        results = []
        for item in items:
            with self.noting(picture=picture):
                results.append(read(item))
        return results

    def fault(self, text: str, *, picture: Hashable = None) -> None:
        """Adds a fault, of a picture if it is of one only."""
        self.faults.append(text)
        if picture is not None:
            self.bad.add(picture)

    def remark(self, what: str, where: str) -> None:
        """Adds something that was left out or changed, which is no reason to stop."""
        self.remarks[what].append(where)

    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind of remark, with its count and the first places."""
        notes = []
        for what, places in self.remarks.items():
            shown = ", ".join(place.rsplit("/", 1)[-1] for place in places[:SHOWN_PLACES])
            more = ", ..." if len(places) > SHOWN_PLACES else ""
            notes.append(f"{what}: {len(places)} ({shown}{more}).")
        return tuple(notes)

    def stop(self) -> None:
        """Raises a `DataError` with the first faults, if there are any."""
        if self.faults:
            n_more = len(self.faults) - SHOWN
            more = f"\n... and {n_more} more" if n_more > 0 else ""
            raise DataError("\n".join(self.faults[:SHOWN]) + more)


@contextlib.contextmanager
def reporting(report: Report | None) -> Iterator[Report]:
    """The report given; or a new one, of which faults are raised at the end."""
    if report is not None:
        yield report
        return
    own = Report()
    yield own
    own.stop()
