"""One folder for all that can be made or fetched again."""

import pathlib

from jaxdet import cache


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "here"))
    assert cache.folder() == tmp_path / "here"
    monkeypatch.delenv("JAXDET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "jaxdet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == pathlib.Path.home() / ".cache" / "jaxdet"
