"""Compiled programs in trace files: a message by hand, and what jax writes."""

import jax
import jax.numpy as jnp
import pytest

from jaxdet.training import trace_programs
from jaxdet.training.trace_programs import Operation


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(*fields):
    """Fields are (number, value): an integer, text, or a message."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def instruction(number, name, path="", *, opcode="fusion", operands=(), computations=()):
    metadata = [(7, message((1, "add"), (2, path)))] if path else []
    packed = b"".join(map(varint, operands))
    return message(
        *((1, name), (2, opcode), *metadata, (35, number), (36, packed)),
        *((38, computation) for computation in computations),  # Not packed.
    )


@pytest.fixture
def trace_file(tmp_path):
    inner = message(
        (1, "fused"),
        (5, 300),
        *((2, instruction(200 + i, f"in{i}", path)) for i, path in enumerate("ppq")),
    )
    main = message(
        (1, "main"),
        (5, 301),
        (2, instruction(1, "x", "jit(f)/net/add", opcode="parameter")),
        (2, instruction(2, "dx", "jit(f)/transpose(jvp(net))/add")),
        (2, instruction(3, "fused", computations=[300], operands=[1])),
        (2, instruction(4, "copy", operands=[1, 2])),
        (2, instruction(1000, "lone")),
    )
    module = message((1, "jit_f"), (3, inner), (3, main))
    stat = message((1, 4), (6, message((1, module))))
    event = message((1, 9), (2, "jit_f(132)"), (5, message((1, 5), (3, 132))), (5, stat))
    plane = message((2, "/host:metadata"), (4, message((1, 9), (2, event))))
    file = tmp_path / "x.xplane.pb"
    file.write_bytes(message((1, message((2, "/host:CPU"))), (1, plane)))
    return file


def test_a_message_by_hand(trace_file):
    got = trace_programs.programs(trace_file)
    assert got.keys() == {132}
    assert got[132]["x"] == Operation("parameter", "jit(f)/net/add")
    assert got[132]["fused"] == Operation("fusion", "p")  # The most common within.
    # Of two operands, the gradient's.
    assert got[132]["copy"] == Operation("fusion", "jit(f)/transpose(jvp(net))/add")
    assert got[132]["lone"] == Operation("fusion", "")


def test_what_jax_writes(tmp_path):
    @jax.jit
    def scoped(x):
        with jax.named_scope("first"):
            x = jnp.sort(x)
        with jax.named_scope("second"):
            return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: x + 1, x)

    jax.block_until_ready(scoped(jnp.ones(64)))
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(scoped(jnp.ones(64)))
    (file,) = tmp_path.rglob("*.xplane.pb")
    found = [list(p.values()) for p in trace_programs.programs(file).values()]
    # A trace holds every program of its process, those of other tests among them.
    (operations,) = [p for p in found if any("jit(scoped)/second" in o.path for o in p)]
    assert any(o.opcode == "while" and "jit(scoped)/second/while" in o.path for o in operations)
    assert any("jit(scoped)/first/" in o.path for o in operations)
