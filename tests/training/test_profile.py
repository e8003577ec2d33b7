"""The table of a step's time: by hand, and of a real trace."""

import time

import jax
import jax.numpy as jnp
import pytest

from jaxdet.training import profile
from jaxdet.training.profile import Event
from jaxdet.training.trace_programs import Operation

PLAIN = {name: Operation("fusion", "") for name in "abc"} | {"loop": Operation("while", "")}


def test_one_operation_after_the_other():
    events = [Event(1, 0.0, 3.0, "a"), Event(1, 3.0, 4.0, "b"), Event(1, 6.0, 7.0, "a")]
    got = profile.shares(events, PLAIN)
    assert got == {"a": 4, "b": 1, profile.GAPS: 2, profile.WAITING: 0}


def test_operations_at_the_same_time_share_it():
    events = [Event(1, 0.0, 6.0, "a"), Event(1, 2.0, 4.0, "b"), Event(1, 2.0, 4.0, "c")]
    got = profile.shares(events, PLAIN)
    assert got["a"] == pytest.approx(4 + 2 / 3) and got["b"] == got["c"] == pytest.approx(2 / 3)


def test_a_loop_has_what_nothing_in_it_takes():
    events = [Event(1, 0.0, 10.0, "loop"), Event(1, 1.0, 4.0, "a"), Event(1, 5.0, 9.0, "b")]
    got = profile.shares(events, PLAIN)
    assert (got["loop"], got["a"], got["b"]) == (3, 3, 4)


def test_time_between_steps_is_waiting():
    events = [Event(1, 0.0, 2.0, "a"), Event(1, 3.0, 4.0, "a"), Event(2, 9.0, 11.0, "a")]
    got = profile.shares(events, PLAIN)
    assert got == {"a": 5, profile.GAPS: 1, profile.WAITING: 5}


@pytest.mark.parametrize(
    "path, want",
    [
        ("jit(f)/jvp(Net.features)/backbone/body/conv1/conv", ("backbone", False)),
        ("jit(f)/transpose(jvp(Net.features))/backbone/body/conv1/conv", ("backbone", True)),
        ("jit(f)/jvp(Net.classify)/heads/vmap(roi_align)/jit(sum)/add", ("roi_align", False)),
        ("jit(f)/vmap(proposals)/nms/while/body/closed_call/mul", ("nms", False)),
        ("jit(f)/vmap(proposals)/top_k", ("proposals", False)),
        ("jit(f)/while/body/closed_call/mul", (profile.UNNAMED, False)),
        ("jit(f)/jvp(_loss)/div", (profile.UNNAMED, False)),
        ("", (profile.UNNAMED, False)),
    ],
)
def test_part_by_hand(path, want):
    assert profile.part_of(Operation("fusion", path)) == want


def test_sums_over_devices_are_a_part():
    operation = Operation("all-reduce-start", "jit(f)/transpose(jvp(Net.x))/backbone/psum")
    assert profile.part_of(operation) == (profile.SUMS, False)


def network(weights, x):
    with jax.named_scope("backbone"):
        for _ in range(4):
            x = jnp.tanh(x @ weights)
    with jax.named_scope("nms"):
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sort(x, axis=0), x)
    return x.sum()


@jax.jit
def step(weights, x):
    gradient = jax.grad(network)(weights, x)
    with jax.named_scope("optimizer"):
        weights = weights - 1e-3 * jnp.sign(gradient) * jnp.linalg.norm(gradient)
    return weights, {"loss": jnp.sum(weights)}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A trace of four calls, between which the device waits; what it took by the clock."""
    folder = tmp_path_factory.mktemp("profile")
    weights, seconds = jax.random.normal(jax.random.key(0), (300, 300)) / 300, 0.0
    other = jax.jit(lambda x: jnp.sort(jnp.tile(x, 100)).sum())
    with profile.traced(step, first=3, last=6, folder=folder) as run:
        for call in range(1, 8):
            begun = time.perf_counter()
            weights, metrics = run(weights, jnp.ones((900, 300)))
            jax.block_until_ready(metrics)
            if 3 < call < 6:  # Starting and ending a trace takes its time.
                time.sleep(0.05)
                if call == 4:  # An evaluation, longer than the steps.
                    other(jnp.arange(3e4)).block_until_ready()
                seconds += time.perf_counter() - begun
    return folder, seconds


def test_times_add_up_and_name_the_parts(traced):
    folder, seconds = traced
    got = profile.read(folder)
    assert got.n_steps == 4
    assert sum(map(sum, got.parts.values())) == pytest.approx(got.total, rel=1e-6)
    assert {"backbone", "nms", "optimizer", profile.WAITING, profile.GAPS} <= got.parts.keys()
    assert got.parts["backbone"].forward > 0 and got.parts["backbone"].backward > 0
    assert got.parts["optimizer"].backward == 0
    # Two of the three pauses are after calls that the clock saw.
    assert 2 * 50 / 4 < got.parts[profile.WAITING].forward < got.total
    # Four calls are traced, two of them timed: on a busy machine the pauses hardly count.
    assert 0.5 < got.total * 4 / 1e3 / seconds < 3
    known = sum(sum(p) for name, p in got.parts.items() if name != profile.UNNAMED)
    assert known > 0.9 * got.total


def test_other_parts_may_be_named():
    operation = Operation("fusion", "jit(f)/jvp(Net.features)/backbone/vmap(body)/conv1/conv")
    assert profile.part_of(operation, parts=("body", "nms")) == ("body", False)


def test_table(traced):
    lines = profile.as_table(profile.read(traced[0])).splitlines()
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[1:]]
    assert shares[-1] == 100 and sum(shares[:-1]) == pytest.approx(100, abs=1)
    assert shares[:-1] == sorted(shares[:-1], reverse=True)
    assert "(4 steps)" in lines[-1]


def test_misuse(tmp_path):
    with pytest.raises(ValueError, match="no trace"):
        profile.read(tmp_path)
    for first, last in ((0, 2), (1, 2), (3, 2)):
        with pytest.raises(ValueError, match=f"Got {first} and {last}"):
            profile.traced(step, first=first, last=last, folder=tmp_path).__enter__()


@pytest.mark.parametrize("n_calls, says", [(4, "(3 steps)"), (1, "were 1 calls, not 2")])
def test_a_block_that_ends_early(tmp_path, capsys, n_calls, says):
    weights = jnp.eye(300)
    with profile.traced(step, first=2, last=6, folder=tmp_path) as run:
        for _ in range(n_calls):
            weights, _ = run(weights, jnp.ones((900, 300)))
    assert says in capsys.readouterr().out
    with profile.traced(step, first=2, last=2, folder=tmp_path) as run:  # Not left running.
        for _ in range(2):
            weights, _ = run(weights, jnp.ones((900, 300)))


def test_after_an_error_the_trace_stays_unread(tmp_path, capsys):
    """Whoever stops a process does not wait for the table."""
    weights = jnp.eye(300)
    with (
        pytest.raises(RuntimeError, match="the run's own"),
        profile.traced(step, first=2, last=9, folder=tmp_path) as run,
    ):
        for _ in range(4):
            weights, _ = run(weights, jnp.ones((900, 300)))
        raise RuntimeError("the run's own")
    assert "forward" not in capsys.readouterr().out
    assert profile.read(tmp_path).n_steps == 3


@pytest.mark.parametrize("n_calls", [2, 4])
def test_a_trace_that_cannot_be_read_ends_nothing(tmp_path, capsys, monkeypatch, n_calls):
    """After the last call, and where the block ends before it."""

    def unreadable(folder, *, parts):
        raise KeyError(4)

    monkeypatch.setattr(profile, "read", unreadable)
    weights = jnp.eye(300)
    with profile.traced(step, first=2, last=3, folder=tmp_path) as run:
        for _ in range(n_calls):
            weights, _ = run(weights, jnp.ones((900, 300)))
    assert f"The trace in {tmp_path} cannot be read: KeyError(4)" in capsys.readouterr().out


def test_a_program_from_a_cache_has_another_number_in_its_metadata(traced, monkeypatch):
    want = profile.read(traced[0])
    numbered = profile.trace_programs.programs

    def renumbered(file):
        return {number + 1000: program for number, program in numbered(file).items()}

    monkeypatch.setattr(profile.trace_programs, "programs", renumbered)
    assert profile.read(traced[0]) == want
