"""Compiled programs on disk, so that a second start does not compile again; and faster tracing."""

import contextlib
import gc
import pathlib
from typing import Any

import jax

from jaxdet import atomic, cache

jax_cache: Any = None
with contextlib.suppress(ImportError):  # JAX's inside; where it is another one, it stays as it is.
    from jax._src import compilation_cache as jax_cache
_FileCache: Any = getattr(jax_cache, "LRUCache", None)

OFF = "off"


def keep(folder: str) -> pathlib.Path | None:
    """Keeps what is compiled from now on, and looks there before compiling.

    A program comes back as it was stored, so results stay the same bits; its file is there whole or
    not at all. JAX's own settings (`JAX_COMPILATION_CACHE_DIR`,
    `JAX_ENABLE_COMPILATION_CACHE=false`) come first.

    Args:
      folder: Where; `compiled` in `cache.folder()` if empty, nowhere if "off".

    Returns:
      The folder, which is made when it is needed; None where nothing is kept.
    """
    settings: Any = jax.config  # Type checkers do not know its names.
    if folder == OFF or not settings.jax_enable_compilation_cache:
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    chosen = folder or settings.jax_compilation_cache_dir or cache.folder() / "compiled"
    path = pathlib.Path(chosen).absolute()
    jax.config.update("jax_compilation_cache_dir", str(path))
    if _FileCache is not None:
        jax_cache.LRUCache = _cache_of_whole_files
    return path


class _WholeFile(pathlib.PosixPath):
    """JAX writes a file once: one that a kill cut would be refused, and stay, at every start."""

    def write_bytes(self, data: Any) -> int:
        with atomic.replacing(self) as unfinished:
            return unfinished.write_bytes(data)


def _cache_of_whole_files(path: str, **options: Any) -> Any:
    files = _FileCache(path, **options)
    # Another JAX, or a system without such paths: files are then written as JAX does.
    with contextlib.suppress(AttributeError, NotImplementedError):
        files.path = _WholeFile(files.path)
    return files


def look_for_garbage_rarely() -> None:
    """Spares a sixth of the time that tracing takes, which makes many objects and little garbage.

    For whole programs: it sets how often Python's collector runs in this process.
    """
    gc.set_threshold(100_000)
