"""Where the pictures are that an annotation file names."""

import pathlib
from collections.abc import Iterator, Sequence

from jaxdet.data.records import DataError
from jaxdet.data.reports import Report

# How far around the file its pictures are looked for.
MAX_DEPTH = 3
MAX_FOLDERS = 500


def find_pictures(
    file: pathlib.Path,
    wanted: Sequence[tuple[str, str]],
    report: Report,
    *,
    images: pathlib.Path | None = None,
) -> list[pathlib.Path | None]:
    """Finds the pictures of an annotation file, each in the first folder around it that has it.

    Args:
      file: The annotation file; a folder with its name (train2017) goes before all others.
      wanted: (name, where it is written) of each picture; names may have folders in them.
      report: Gets a fault for each picture that is missing, or there twice.
      images: Folder to look in, instead of around the file.

    Returns:
      A path for each; None for those with a fault.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: is no folder, so it holds no pictures of {file}.")
    around = file.parent if file.parent.name else file.parent.absolute()  # "." has no parent.
    roots = [images] if images is not None else [around, around.parent]
    looked_in: list[pathlib.Path] = []
    found: list[pathlib.Path | None] = []
    for name, where in wanted:
        here = None
        with report.noting():
            here = _holding(name, where, looked_in, file)
            while here is None and roots:
                looked_in += [f for f in _folders(roots.pop(0)) if f not in looked_in]
                here = _holding(name, where, looked_in, file)
            if here is None:
                raise DataError(
                    f"{where} = {name!r}: there is no such picture in "
                    f"{images or around.parent} or its sub folders. Put it there, or name the "
                    "folder of the pictures (--images)."
                )
        found.append(here)
    return found


def _holding(
    name: str, where: str, folders: Sequence[pathlib.Path], file: pathlib.Path
) -> pathlib.Path | None:
    """The picture in the folder that has it."""
    holding = list(_files(name, folders))
    named = [path for folder, path in holding if folder.name and folder.name in file.stem]
    if named:
        return named[0]
    if len(holding) > 1 and len({path.resolve() for _, path in holding}) > 1:
        raise DataError(
            f"{where} = {name!r} is both in {holding[0][0]} and in {holding[1][0]}. Name the "
            "folder of the pictures (--images)."
        )
    return holding[0][1] if holding else None


def _files(
    name: str, folders: Sequence[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    for folder in folders:
        try:
            if (folder / name).is_file():
                yield folder, folder / name
        except (OSError, ValueError):  # No file can have this name: too long, or a zero in it.
            continue


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The folder and its sub folders, nearest first, not too far and not too many."""
    level, folders = [root], [root]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.name.startswith(".")
        ][:MAX_FOLDERS]
        folders += level
    return folders[:MAX_FOLDERS]
