import pytest

from jaxdet.data import fields
from jaxdet.data.records import DataError


@pytest.mark.parametrize(
    ("kind", "value"), [(int, 3), (float, 3), (float, 2.5), (str, ""), (list, []), (dict, {})]
)
def test_right_types(kind, value):
    assert fields.field({"key": value}, "key", kind, "file: row") == value


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        (int, None, "is missing"),
        (int, True, "= True is no whole number"),
        (int, 2.0, "= 2.0 is no whole number"),
        (float, "2", "= '2' is no finite number"),
        (float, float("nan"), "= nan is no finite number"),
        (float, 10**400, "is no finite number"),
        (str, 3, "= 3 is no text"),
        (list, {}, "= {} is no list"),
    ],
)
def test_wrong_types(kind, value, found):
    with pytest.raises(DataError, match=rf"^file: row.key .*{found}"):
        fields.field({"key": value}, "key", kind, "file: row")


def test_rows_that_are_none():
    for row in (None, [], "text", 3):
        with pytest.raises(DataError, match="is missing"):
            fields.field(row, "key", int, "file")


def test_numbers():
    assert fields.numbers({"b": [1, 2.5]}, "b", 2, "f") == [1.0, 2.5]
    for bad in ([1], [1, 2, 3], [1, "2"], [1, float("inf")], [1, 10**400]):
        with pytest.raises(DataError, match=r"f.b = .* must be 2 finite numbers"):
            fields.numbers({"b": bad}, "b", 2, "f")


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert fields.read_json(path) == {"a": 1}
    for text in (b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(DataError, match=r"a.json: is not JSON"):
            fields.read_json(path)
    with pytest.raises(DataError, match=r"gone.json: cannot be read"):
        fields.read_json(tmp_path / "gone.json")


def test_long_values_are_cut():
    assert len(fields.short("x" * 1000)) == 60
