import builtins
import os
import pickle

import numpy as np
import pytest

from jaxdet.weights import tensor_pickle
from jaxdet.weights.tensor_pickle import Storage, Tensor, WeightsError


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "function, name",
    [
        (os.mkdir, r"(posix|nt|os)\.mkdir"),
        (eval, "eval"),
        (getattr, "getattr"),
        (builtins.__import__, "__import__"),
    ],
)
def test_nothing_else_is_imported(tmp_path, monkeypatch, protocol, function, name):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"a": Calls(function, "made")}, protocol)
    with pytest.raises(WeightsError, match=f"{name}.*refused"):
        tensor_pickle.load(data, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.",
        b"(S'1'\ni__builtin__\neval\n.",
        b"(c__builtin__\neval\nS'1'\no.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02(K\x01K\x02",
    ],
)
def test_hand_made_pickles_are_refused(data):
    with pytest.raises(WeightsError, match=r"refused|damaged|uses"):
        tensor_pickle.load(data, 0)


def test_a_pickle_amid_other_bytes():
    first, second = pickle.dumps([1, 2]), pickle.dumps({"a": "b"})
    found, storages, end = tensor_pickle.load(b"xx" + first + second + b"rest", 2)
    assert found == [1, 2] and storages == {}
    found, _, end = tensor_pickle.load(b"xx" + first + second + b"rest", end)
    assert found == {"a": "b"} and end == 2 + len(first) + len(second)


def test_dump_and_load():
    arrays = {"a": np.zeros((2, 3), np.float32), "b.c": np.zeros((), np.int64)}
    found, storages, _ = tensor_pickle.load(tensor_pickle.dump(arrays), 0)
    floats, number = Storage("0", np.dtype("f4"), 6), Storage("1", np.dtype("i8"), 1)
    assert found == {"a": Tensor(floats, 0, (2, 3), (3, 1)), "b.c": Tensor(number, 0, (), ())}
    assert storages == {"0": floats, "1": number}
