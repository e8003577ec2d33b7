"""Which part of a data set is for training: by its names, or by a hash where there is one part."""

import re
import zlib
from collections.abc import Collection, Sequence

HELD_OUT_SHARE = 0.2
SPLITS = ("train", "val", "test", "trainval")

_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "minival": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# What to take for a split, best first.
_FITTING = {
    "train": ("train", "trainval"),
    "val": ("val", "test"),
    "test": ("test", "val"),
}


def split_of(path: str) -> str | None:
    """The split that a relative path names, if any: its last word counts most.

    `annotations/instances_train2017.json` is "train", `valid/_annotations.coco.json` is "val".
    """
    words = re.findall("[a-z]+", path.lower())
    return next((_WORDS[word] for word in reversed(words) if word in _WORDS), None)


def choose(split: str, parts: Collection[str]) -> tuple[str, bool]:
    """The part of a data set to read for a split.

    Args:
      split: One of `SPLITS`.
      parts: What the data set has, by names as of `split_of` or any other.

    Returns:
      Name of the part, and whether it has to be divided because training and held-out images are
      both in it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}: got {split!r}")
    if not parts or (split == "trainval" and split not in parts):
        raise ValueError(f"there is no part for {split!r} in {sorted(parts)}")
    if split == "trainval":
        return split, False
    fitting = next((name for name in _FITTING[split] if name in parts), None)
    if {"val", "test"} & set(parts):
        if fitting is None:
            raise ValueError(f"there is no part to train on in {sorted(parts)}")
        return fitting, False
    return fitting or next((p for p in _FITTING["train"] if p in parts), min(parts)), True


def divide(names: Sequence[str], split: str) -> list[int]:
    """Indices of the names that belong to a split; a fifth is held out, as "val" and "test".

    The names' hashes are ranked, so the parts do not depend on order or machine.
    """
    order = sorted(range(len(names)), key=lambda i: (zlib.crc32(names[i].encode()), names[i]))
    n_held_out = min(max(1, round(HELD_OUT_SHARE * len(names))), max(len(names) - 1, 0))
    return sorted(order[n_held_out:] if split == "train" else order[:n_held_out])
