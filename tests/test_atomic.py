import pytest

from jaxdet import atomic


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        with atomic.replacing(path) as unfinished:
            assert unfinished.parent == tmp_path
            unfinished.write_text(text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", ["old", None])
def test_an_error_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with pytest.raises(RuntimeError), atomic.replacing(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])
