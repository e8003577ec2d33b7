"""Eight devices follow the curve of one at the same global batch."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name("devices_program.py")


@pytest.mark.parametrize("subject", ["toy", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_eight_devices_follow_one(subject, tmp_path):
    """Sums, counts, keys and norms of the global batch; pmap and shard_map in the same bits.

    python -m pytest -m slow -k eight_devices
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, PROGRAM, subject, tmp_path], check=True, env=environment)
    one, pmap, shard_map = (
        dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "pmap", "shard_map")
    )
    assert len(one["curve"]) == 50 and np.ptp(one["curve"]) > 0.5  # Something was learnt.
    np.testing.assert_allclose(pmap["curve"], one["curve"], rtol=1e-4)
    for name, want in one.items():
        np.testing.assert_allclose(pmap[name], want, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(pmap[name], shard_map[name])
