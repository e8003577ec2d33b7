"""Writes torch_files.npz: small files of torch as bytes, and the arrays in them.

Run  python tests/golden/make_torch_files.py     with torch 2.13, safetensors 0.8
"""

import argparse
import io
import pathlib
from collections import OrderedDict

import numpy as np
import safetensors.torch
import torch


def state_dict():
    """Tensors of every type, windows on shared storages, none, and one number."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    tensors = OrderedDict(
        float=torch.randn(3, 4, generator=generator),
        half=torch.randn(2, 2, generator=generator).half(),
        bfloat=torch.randn(5, generator=generator).bfloat16(),
        double=torch.randn(2, generator=generator).double(),
        long=torch.tensor(7),
        bool=torch.tensor([True, False]),
        window=base[1:4, 2:6],
        transposed=base.t(),
        whole=base,
        empty=torch.zeros(0, 3),
        expanded=torch.ones(1).expand(4),
        parameter=torch.nn.Parameter(torch.randn(3, generator=generator)),
    )
    tensors._metadata = OrderedDict(module={"version": 2})
    return tensors


def saved(thing, **options):
    """The bytes of a file of torch.save."""
    stream = io.BytesIO()
    torch.save(thing, stream, **options)
    return np.frombuffer(stream.getvalue(), np.uint8)


def main():
    tensors = state_dict()
    legacy = {"_use_new_zipfile_serialization": False}
    arrays = {
        "zip": saved(tensors),
        "legacy": saved(tensors, **legacy),
        "nested": saved({"model": tensors, "epoch": 3, "optimizer": {"lr": 0.1}}),
        "namespace": saved({"model": tensors, "args": argparse.Namespace(lr=0.1)}),
        "namespace_legacy": saved({"model": tensors, "args": argparse.Namespace()}, **legacy),
    }
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    arrays["safetensors"] = np.frombuffer(safetensors.torch.save(plain), np.uint8)
    for name, tensor in plain.items():
        exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        arrays[f"tensor/{name}"] = exact.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("torch_files.npz"), **arrays)


if __name__ == "__main__":
    main()
