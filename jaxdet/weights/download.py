"""Files from the web, once: into a cache, gone on with where it stopped, checked by their name."""

import hashlib
import http.client
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import filelock

from jaxdet import cache
from jaxdet.weights.tensor_pickle import WeightsError

CHUNK = 1 << 20
TIMEOUT = 30.0  # Seconds without a byte.


def fetch(
    url: str,
    *,
    folder: pathlib.Path | None = None,
    progress: Callable[[int, int | None], Any] | None = None,
) -> pathlib.Path:
    """Returns a file from the web, downloaded if the cache has no whole copy.

    What came before a broken connection stays as `NAME.part`, and the next call asks for the rest
    (an HTTP range). The file gets its name when it is whole and its hash is right. Of several
    processes one downloads, the others wait.

    Args:
      url: Its last part, NAME-DIGITS.SUFFIX, ends in the first 8 or more hexadecimal digits of the
        file's SHA-256, as torch.hub's files do.
      folder: Of the cache; `cache.folder()` if None.
      progress: Called with the bytes there are and the bytes there will be, None if unknown.

    Raises:
      WeightsError: Where the connection fails, or the hash is wrong; what is wrong is deleted.
    """
    name = url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if digits is None:
        raise ValueError(f"url must end in -HASH.SUFFIX. Got {url}")
    folder = cache.folder() if folder is None else folder
    path, part = folder / name, folder / f"{name}.part"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):
            if not path.is_file():
                _download(url, part, progress)
                _check(url, part, digits[1])
                os.replace(part, path)
    except (OSError, http.client.HTTPException) as fault:
        kept = f" {part.stat().st_size} bytes are kept." if part.is_file() else ""
        raise WeightsError(
            f"{url} could not be downloaded: {fault!r}.{kept} Try again, or put the file there "
            f"yourself: {path}"
        ) from fault
    return path


def show_progress(done: int, total: int | None) -> None:
    """Writes how far a download is to the terminal; for `fetch`.

    Args:
      done: Bytes there are.
      total: Bytes there will be, None if unknown.
    """
    of_all = "" if total is None else f" of {total / 1e6:.0f}"
    end = "\n" if done == total else ""
    print(f"\rdownloading: {done / 1e6:.0f}{of_all} MB", end=end, file=sys.stderr, flush=True)


def _download(
    url: str, part: pathlib.Path, progress: Callable[[int, int | None], Any] | None
) -> None:
    """Appends what is missing of a file."""
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as fault:
        if done and fault.code == 416:  # There is nothing beyond what we have.
            return
        raise
    with answer:
        if answer.status != 206:  # The server sends everything again.
            done = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection broke off after {done} of {total} bytes")


def _check(url: str, part: pathlib.Path, digits: str) -> None:
    """Deletes what came if it is not the file."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits):
        part.unlink()
        raise WeightsError(
            f"{url}: what came has the SHA-256 {found}, which should begin with {digits}; it was "
            "deleted. A proxy's page in place of the file?"
        )
