"""What must be known of a detector beside its variables, as JSON holds it in every checkpoint."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdet.data.resize import ShortSide
from jaxdet.proposals.rpn import ProposalOptions
from jaxdet.systems.architectures import Architecture
from jaxdet.systems.faster_rcnn import DetectOptions

SYSTEM = "faster_rcnn"


class Description(NamedTuple):
    """A detector without its numbers."""

    architecture: Architecture
    classes: tuple[str, ...]  # Name of label 1, 2, ...
    category_ids: tuple[int, ...]  # Number of label 1, 2, ... in results files.
    canvases: tuple[tuple[int, int], ...] | ShortSide  # Which sizes pictures are given.
    detect: DetectOptions


def to_metadata(description: Description) -> dict[str, Any]:
    """Returns a description as JSON holds it; inverse of `from_metadata`."""
    fields = description._asdict() | {
        "system": SYSTEM,
        "architecture": dataclasses.asdict(description.architecture),
        "detect": description.detect._asdict(),
    }
    if isinstance(description.canvases, ShortSide):
        fields["canvases"] = dataclasses.asdict(description.canvases)
    return json.loads(json.dumps(fields))


def from_metadata(metadata: Mapping[str, Any]) -> Description:
    """Returns the description that a checkpoint was written with.

    Args:
      metadata: What `to_metadata` gave, and anything beside it.

    Raises:
      ValueError: Where it is of another system.
    """
    if metadata.get("system") != SYSTEM:
        raise ValueError(
            f"the checkpoint is of system {metadata.get('system')!r}; {SYSTEM!r} is known here."
        )
    canvases = metadata["canvases"]
    detect = dict(metadata["detect"])
    # JSON makes a list of the inner record.
    detect["proposals"] = ProposalOptions(*detect["proposals"])
    by_rule = isinstance(canvases, Mapping)
    return Description(
        architecture=Architecture(**_tuples(dict(metadata["architecture"]))),
        classes=tuple(metadata["classes"]),
        category_ids=tuple(metadata["category_ids"]),
        canvases=ShortSide(**canvases) if by_rule else _tuples(list(canvases)),
        detect=DetectOptions(**detect),
    )


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
