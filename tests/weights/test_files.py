import pathlib
import struct

import numpy as np
import pytest

from jaxdet.weights import files
from jaxdet.weights.tensor_pickle import WeightsError

# Made by golden/make_torch_files.py.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "torch_files.npz")


@pytest.mark.parametrize("kind, suffix", [("zip", ".pth"), ("safetensors", ".safetensors")])
def test_reads_by_suffix(tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(GOLDEN[kind].tobytes())
    arrays, texts = files.read(path)
    assert texts == {}
    for name, array in arrays.items():
        want = GOLDEN[f"tensor/{name}"]
        assert array.shape == want.shape
        np.testing.assert_array_equal(array.astype(want.dtype), want)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_written_files_read_back(tmp_path, suffix):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.zeros((), np.int64),
        "c": np.arange(3, dtype=np.float16),
    }
    path = tmp_path / "deep" / f"a{suffix}"
    files.write(path, arrays, texts={"note": "hello"})
    got, texts = files.read(path)
    assert texts == ({"note": "hello"} if suffix == ".safetensors" else {})
    assert got.keys() == arrays.keys()
    for name, want in arrays.items():
        assert got[name].dtype == want.dtype and got[name].shape == want.shape
        np.testing.assert_array_equal(got[name], want)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (GOLDEN["safetensors"].tobytes()[:-8], "cut off"),
        (GOLDEN["safetensors"].tobytes()[:30], "cut off"),
        (GOLDEN["zip"].tobytes(), "zip archive"),
        (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors file"),
        (
            b'\x3c\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
            "not",
        ),
    ],
)
def test_bad_safetensors(tmp_path, data, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        files.read(path)


def test_unknown_suffixes(tmp_path):
    with pytest.raises(WeightsError, match=r"read from \.pth"):
        files.read(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"Got .*a\.h5"):
        files.write(tmp_path / "a.h5", {})


def test_a_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        files.read(tmp_path / "a.safetensors")
