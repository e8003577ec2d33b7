import io
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxdet.weights import torch_file
from jaxdet.weights.tensor_pickle import WeightsError

# Made by golden/make_torch_files.py.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "torch_files.npz")
TENSORS = {n.removeprefix("tensor/"): GOLDEN[n] for n in GOLDEN.files if n.startswith("tensor/")}


def written(tmp_path, name, data=None):
    path = tmp_path / f"{name}.pth"
    path.write_bytes(GOLDEN[name].tobytes() if data is None else data)
    return path


def repacked(change):
    """The zip file with each entry's bytes replaced by `change(name, data)`, None drops it."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(GOLDEN["zip"].tobytes())) as old,
        zipfile.ZipFile(stream, "w") as new,
    ):
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return stream.getvalue()


def assert_equal(got):
    assert got.keys() == TENSORS.keys()
    for name, want in TENSORS.items():
        have = got[name]
        assert have.shape == want.shape, name
        if name == "bfloat":
            assert have.dtype == ml_dtypes.bfloat16
            have = have.astype(np.float32)
        assert have.dtype == want.dtype, name
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("kind", ["zip", "legacy", "nested"])
def test_reads_what_torch_writes(tmp_path, kind):
    got = torch_file.read(written(tmp_path, kind))
    assert_equal(got)
    assert np.shares_memory(got["window"], got["whole"])
    assert not got["whole"].flags.writeable


def test_written_files_read_back(tmp_path):
    path = tmp_path / "a.pth"
    torch_file.write(path, torch_file.read(written(tmp_path, "zip")))
    assert_equal(torch_file.read(path))
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_big_endian_numbers(tmp_path):
    def swap(name, data):
        if name.endswith("byteorder"):
            return b"big"
        # Storages of other types than float32 come out as nonsense.
        floats = "/data/" in name and len(data) % 4 == 0
        return np.frombuffer(data, ">u4").astype("<u4").tobytes() if floats else data

    got = torch_file.read(written(tmp_path, "big", repacked(swap)))
    np.testing.assert_array_equal(got["float"], TENSORS["float"])
    np.testing.assert_array_equal(got["window"], TENSORS["window"])


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 1, 3, 20, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_cut_off_files_are_refused(tmp_path, kind, kept):
    data = GOLDEN[kind].tobytes()
    data = data[: kept if isinstance(kept, int) else int(kept * len(data))]
    with pytest.raises(WeightsError, match=r"cut\.pth: .*(cut off|empty|unknown|damaged|a pickle)"):
        torch_file.read(written(tmp_path, "cut", data))


@pytest.mark.parametrize("kind", ["namespace", "namespace_legacy"])
def test_foreign_imports_are_refused_by_name(tmp_path, kind):
    with pytest.raises(WeightsError, match=r"imports argparse\.Namespace.*refused"):
        torch_file.read(written(tmp_path, kind))


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"\x89HDF\r\n", "HDF5"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"<html><body>404", "HTML"),
        (b'{"a": 1}', "JSON"),
        (b"\x93NUMPY", "NumPy"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (struct.pack("<Q", 40) + b'{"a":', "safetensors"),
        (b"hello", "unknown"),
    ],
)
def test_foreign_files_are_named(tmp_path, start, kind):
    with pytest.raises(WeightsError, match=kind):
        torch_file.read(written(tmp_path, "foreign", start + bytes(300)))


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        torch_file.read(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda name, data: None if name.endswith("data/0") else data, "lacks .*data/0"),
        (lambda name, data: data[:-4] if name.endswith("data/0") else data, "should hold 12"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "without one data.pkl"),
        (lambda name, data: b"middle" if name.endswith("byteorder") else data, "byte order"),
    ],
)
def test_damaged_archives(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        torch_file.read(written(tmp_path, "damaged", repacked(change)))


def test_compressed_entries_are_not_unpacked(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(WeightsError, match="compressed"):
        torch_file.read(written(tmp_path, "bomb", stream.getvalue()))


def tensor_claim(shape, strides, *, offset=0):
    """A zip file with one tensor on a storage of four numbers."""
    sizes = "".join(f"I{n}\n" for n in shape), "".join(f"I{n}\n" for n in strides)
    pickled = (
        "\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(((X\x07\x00\x00\x00storage"
        "ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuI4\ntQ"
    ).replace("(((", "((", 1)
    pickled += f"I{offset}\n({sizes[0]}t({sizes[1]}t\x89NtRu."
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.encode("latin1"))
        archive.writestr("archive/data/0", np.arange(4, dtype="<f4").tobytes())
    return stream.getvalue()


def test_a_window_by_hand(tmp_path):
    got = torch_file.read(written(tmp_path, "claim", tensor_claim([2, 2], [1, 2])))
    np.testing.assert_array_equal(got["a"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    "shape, strides, offset",
    [
        ([5], [1], 0),
        ([4], [1], 1),
        ([2, 2], [4, 1], 0),
        ([2], [-1], 1),
        ([-2], [1], 0),
        ([2], [1], -1),
        ([2, 2], [1], 0),
        ([1 << 40], [0], 0),
        ([1 << 62, 1 << 62], [0, 0], 0),
        ([2] * 40, [0] * 40, 0),
    ],
)
def test_lying_shapes_are_refused(tmp_path, shape, strides, offset):
    data = tensor_claim(shape, strides, offset=offset)
    with pytest.raises(WeightsError, match="a: "):
        torch_file.read(written(tmp_path, "lie", data))


def test_types_that_torch_lacks(tmp_path):
    with pytest.raises(WeightsError, match="a: torch has no tensors of type uint64"):
        torch_file.write(tmp_path / "a.pth", {"a": np.zeros(2, np.uint64)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_spoiled_bytes_are_an_error_or_harmless(tmp_path, kind):
    """A few bytes changed anywhere: refused by name of the file, or arrays all the same."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(GOLDEN[kind].tobytes())
        for place in rng.integers(0, len(data), rng.integers(1, 5)):
            data[place] = rng.integers(0, 256)
        path = written(tmp_path, "spoiled", bytes(data))
        try:
            found = torch_file.read(path)
            assert all(isinstance(x, np.ndarray) for x in found.values())
        except WeightsError as fault:
            refused += 1
            assert str(fault).startswith(str(path))
    assert refused > 30


def with_pickle(tmp_path, opcodes):
    data = repacked(lambda name, data: opcodes if name.endswith("data.pkl") else data)
    return written(tmp_path, "made", data)


def nested(depth):
    """Opcodes of a tuple of two tuples of two tuples ..., each written once."""
    opcodes = b"K\x01K\x01\x86q\x00"
    for i in range(depth):
        opcodes += b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return opcodes


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02}" + nested(40) + b"K\x01s.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + nested(40)
        + b"X\x03\x00\x00\x00cpuK\x04tQ.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nK\x01"
        + b"X\x03\x00\x00\x00cpuK\x04tQ.",
    ],
    ids=["key of a dictionary", "key of a storage", "a number for a key"],
)
def test_small_files_that_would_take_for_ever(tmp_path, opcodes):
    path = with_pickle(tmp_path, opcodes)
    with pytest.raises(WeightsError, match=r"more than 10000000 objects|has no name"):
        torch_file.read(path)


def test_attributes_that_a_pickle_sets_are_not_asked(tmp_path):
    """OrderedDict()._metadata is set so by torch; `items` and `get` could be as well."""
    opcodes = b"\x80\x02ccollections\nOrderedDict\n)R}(X\x05\x00\x00\x00itemsK\x01"
    opcodes += b"X\x03\x00\x00\x00getK\x02ub."
    path = with_pickle(tmp_path, opcodes)
    with pytest.raises(WeightsError, match="empty"):
        torch_file.read(path)
