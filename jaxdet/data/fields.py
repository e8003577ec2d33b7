"""Fields of somebody's JSON, checked as they are taken."""

import json
import math
import pathlib
from typing import Any

from jaxdet.data.records import DataError

_NAMES = {int: "whole number", float: "finite number", str: "text", list: "list", dict: "table"}


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}). Write the file again.") from error


def field(row: Any, name: str, kind: type, where: str) -> Any:
    """A field of a row, of the right type.

    Args:
      row: The row, if it is one.
      name: Of the field.
      kind: int, float, str, list or dict; a float may be written as an int, and is finite.
      where: File and row, for messages.

    Returns:
      Its value.
    """
    value: Any = row.get(name) if isinstance(row, dict) else None
    good = isinstance(value, (int, float) if kind is float else kind)
    if good and not isinstance(value, bool) and (kind is not float or is_finite(value)):
        return value
    found = "is missing" if value is None else f"= {short(value)} is no {_NAMES[kind]}"
    raise DataError(f"{where}.{name} {found}. Write a {_NAMES[kind]} there.")


def is_finite(value: int | float) -> bool:
    """Whether a number is finite, and small enough to be a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def numbers(row: Any, name: str, count: int, where: str) -> list[float]:
    """A field that is a list of `count` finite numbers."""
    values = field(row, name, list, where)
    good = [float(v) for v in values if isinstance(v, int | float) and is_finite(v)]
    if len(values) != count or len(good) != count:
        raise DataError(
            f"{where}.{name} = {short(values)} must be {count} finite numbers. Correct it."
        )
    return good


def short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
