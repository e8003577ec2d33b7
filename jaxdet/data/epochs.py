"""What an epoch holds: how often each picture of a set is seen, and sets mixed into one.

rates     [n], expected number of times that picture i comes in an epoch; 1 is once, as usual

Rates multiply: those of a mixture times those of its classes are both.
"""

import dataclasses
from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Bool, Float64, UInt8

from jaxdet.data.records import Source

Rates = Float64[np.ndarray, " n"]

_GOLDEN = 0.6180339887498949


def repeat_factors(source: Source, *, threshold: float = 1e-3) -> Rates:
    """Rates that repeat the pictures of rare classes.

        r(picture) = max over its classes c of max(1, sqrt(threshold / f(c)))

    where f(c) is the share of the pictures that have an object of class c.

    Args:
      source: Annotated pictures.
      threshold: Share of the pictures below which a class is rare, 0 to 1.

    Returns:
      Rates of at least 1; an epoch becomes longer by what is repeated.

    Source:
      LVIS (Gupta et al. 2019, arXiv:1908.03195v2), appendix B.2.

    Departures:
      The part of a factor after the point is not drawn at random in each epoch; `RatedIndices`
      spreads it evenly over epochs, all of one length.
    """
    present = _present(source)
    share = present.mean(axis=0)
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    return np.where(present, factor[None], 1.0).max(axis=1, initial=1.0)


def class_balanced_rates(source: Source) -> Rates:
    """Rates under which a class is drawn, each as often as any other, then a picture that has it.

        r(picture) = n / n_classes * sum over its classes c of 1 / n(c)

    where n(c) of the n pictures have an object of class c.

    Args:
      source: Annotated pictures; those without objects are of no class, and are not drawn.

    Returns:
      Rates of mean 1.

    Source:
      Relay backpropagation (Shen et al. 2016, arXiv:1512.05830v2), section "Class-aware
      sampling".
    """
    present = _present(source)
    counts = present.sum(axis=0)
    found = counts > 0
    if not found.any():
        raise ValueError(f"classes can be balanced where there are objects: {source.name} has none")
    weights = np.where(present[:, found], 1.0 / counts[found], 0.0).sum(axis=1)
    return weights * len(source) / found.sum()


def mix(sources: Sequence[Source], weights: Sequence[float]) -> tuple[Source, Rates]:
    """One set of several, each with a share of its own in every epoch.

    Args:
      sources: Sets of the same classes in the same order.
      weights: Share of the pictures of each in what is seen, relative to the others'.

    Returns:
      The pictures of all, and their rates, of mean 1: a set that is small for its weight is
      repeated, one that is large is spread over several epochs.
    """
    if not sources or len(sources) != len(weights) or not all(w > 0 for w in weights):
        raise ValueError(f"one weight above 0 is needed for each source: got {tuple(weights)}")
    for field in ("classes", "keypoint_names"):
        if len({getattr(source, field) for source in sources}) > 1:
            found = [getattr(source, field) for source in sources]
            raise ValueError(f"sources must have the same {field}: got {found}")
    sizes = [len(source) for source in sources]
    if not all(sizes):
        raise ValueError(f"each source must have images: got {sizes}")
    share = np.array(weights, float) / sum(weights) * sum(sizes) / sizes
    source = dataclasses.replace(
        sources[0],
        name=" + ".join(source.name for source in sources),
        annotations=tuple(a for source in sources for a in source.annotations),
        read=_ReadOneOf(tuple(s.read for s in sources), tuple(np.cumsum([0, *sizes]).tolist())),
        notes=tuple(note for source in sources for note in source.notes),
    )
    return source, np.repeat(share, sizes)


@dataclasses.dataclass(frozen=True)
class _ReadOneOf:
    reads: tuple[Callable[[int], np.ndarray], ...]
    starts: tuple[int, ...]

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.reads[which](index - self.starts[which])


class RatedIndices(grain.MapDataset):
    """Indices of pictures in epochs of one length, each as often as its rate says.

    A picture of rate r comes floor(r) or ceil(r) times in an epoch (of mean rate r, up to the
    rounding of the epoch's length), and r times on average over epochs: points at a distance of 1
    on the cumulated rates, shifted anew each epoch. Random access, as all of a pipeline.
    """

    def __init__(self, indices: Sequence[int], rates: Rates) -> None:
        super().__init__()
        drawn = rates > 0
        if len(indices) != len(rates) or not drawn.any() or not np.isfinite(rates).all():
            raise ValueError(
                f"rates must be one finite number >= 0 for each of {len(indices)} images, one of "
                f"them above 0: got {rates}"
            )
        self._indices = np.array(indices)[drawn]
        ends = np.cumsum(rates[drawn])
        self._length = max(1, round(ends[-1]))
        self._ends = ends * (self._length / ends[-1])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> int:
        if isinstance(index, slice):
            return self.slice(index)  # pyright: ignore[reportReturnType] - as in Grain's own.
        epoch, place = divmod(index, self._length)
        at = place + (epoch + 1) * _GOLDEN % 1.0  # Never on the end of a whole number of pictures.
        row = int(np.searchsorted(self._ends, at, side="right"))
        return int(self._indices[min(row, len(self._ends) - 1)])


def _present(source: Source) -> Bool[np.ndarray, "n k"]:
    """Which classes each picture has; crowds and difficult objects count."""
    present = np.zeros((len(source), len(source.classes)), bool)
    for row, annotation in enumerate(source.annotations):
        present[row, annotation.labels - 1] = True
    return present
