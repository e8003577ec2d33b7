"""Where files are kept that can be made or fetched again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """Returns `$JAXDET_CACHE`, or `jaxdet` in the user's folder of caches."""
    chosen = os.environ.get("JAXDET_CACHE")
    if chosen:
        return pathlib.Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "jaxdet"
