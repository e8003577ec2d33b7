"""What must be known of a system beside its variables, as JSON holds it in every checkpoint."""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdet.data.resize import ShortSide
from jaxdet.features.networks import Network
from jaxdet.systems import architectures, classifier, faster_rcnn, localizer, overfeat

METADATA = "jaxdet"  # The text of a safetensors file that holds a description.


class System(NamedTuple):
    """What stands behind a name in a checkpoint."""

    architecture: type  # A dataclass of numbers.
    options: type  # Of `detect`, a NamedTuple.
    build: Callable[..., Any]  # build(num_classes, architecture, axis_name=..., dtype=...)
    detect: Callable[..., Any]  # detect(model, variables, images, options=...)


SYSTEMS = {
    "faster_rcnn": System(
        architectures.Architecture,
        faster_rcnn.DetectOptions,
        architectures.build,
        faster_rcnn.detect,
    ),
    "classifier": System(Network, classifier.DetectOptions, classifier.build, classifier.detect),
    "localizer": System(
        localizer.Architecture, classifier.DetectOptions, localizer.build, localizer.detect
    ),
    "overfeat": System(
        overfeat.Architecture, overfeat.DetectOptions, overfeat.build, overfeat.detect
    ),
}


# What other checkpoints are of: the scripts that write them, and alone read them.
NO_DETECTORS = {
    "deep_pose": "finds joints in boxes that are given (experiments/deep_pose.py)",
    "box_adjuster": "moves boxes that are given (experiments/box_adjustment.py)",
}


class Description(NamedTuple):
    """A detector without its numbers."""

    architecture: Any  # Of one of the `SYSTEMS`.
    classes: tuple[str, ...]  # Name of label 1, 2, ...
    category_ids: tuple[int, ...]  # Number of label 1, 2, ... in results files.
    canvases: tuple[tuple[int, int], ...] | ShortSide  # Which sizes pictures are given.
    detect: Any  # Options of the system.


def name_of(architecture: Any) -> str:
    """Returns the name of the system that an architecture is of."""
    return next(k for k, v in SYSTEMS.items() if v.architecture is type(architecture))


def to_metadata(description: Description) -> dict[str, Any]:
    """Returns a description as JSON holds it; inverse of `from_metadata`."""
    fields = description._asdict() | {
        "system": name_of(description.architecture),
        "architecture": dataclasses.asdict(description.architecture),
        "detect": description.detect._asdict(),
    }
    if isinstance(description.canvases, ShortSide):
        fields["canvases"] = dataclasses.asdict(description.canvases)
    return json.loads(json.dumps(fields))


def from_texts(texts: Mapping[str, str]) -> Description | None:
    """Returns the description in a safetensors file's texts, or None where there is none.

    Args:
      texts: By name.

    Raises:
      ValueError: As `from_metadata`.
    """
    return from_metadata(json.loads(texts[METADATA])) if METADATA in texts else None


def from_metadata(metadata: Mapping[str, Any]) -> Description:
    """Returns the description that a checkpoint was written with.

    Args:
      metadata: What `to_metadata` gave, and anything beside it.

    Raises:
      ValueError: Where it is of a system that is not known, or does not fit.
    """
    name = metadata.get("system", "")
    system = SYSTEMS.get(name)
    if name in NO_DETECTORS:
        raise ValueError(f"the checkpoint is no detector: it {NO_DETECTORS[name]}.")
    if system is None:
        raise ValueError(
            f"the checkpoint is of system {metadata.get('system')!r}; known here are "
            f"{', '.join(SYSTEMS)}."
        )
    try:
        found = Description(
            architecture=_restored(system.architecture, metadata["architecture"]),
            classes=tuple(metadata["classes"]),
            category_ids=tuple(metadata["category_ids"]),
            canvases=_restored(ShortSide, metadata["canvases"]),
            detect=_restored(system.options, metadata["detect"]),
        )
        for record, kind in (
            (found.architecture, system.architecture),
            (found.detect, system.options),
        ):
            if not isinstance(record, kind):
                raise TypeError(f"{record} is no {kind.__name__}")
        return found
    except (KeyError, TypeError, AttributeError) as fault:
        raise ValueError(
            f"what is said of the {name} is damaged, or of another version of jaxdet: {fault!r}."
        ) from fault


def _restored(kind: Any, value: Any) -> Any:
    """A record, or a tuple, of what JSON made dictionaries and lists of."""
    if isinstance(value, Mapping):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: _restored(kinds[name], inner) for name, inner in value.items()})
    if isinstance(value, list):
        if hasattr(kind, "_fields"):  # JSON makes a list of a NamedTuple inside another record.
            return kind(*value)
        return tuple(_restored(None, inner) for inner in value)
    return value
