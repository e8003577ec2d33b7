"""Who asks a run to stop gets an answer, whatever the run is doing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxdet.training import signals

# One call that no signal interrupts and no handler gets into, as a compilation is.
PROGRAM = """
import hashlib, sys
from jaxdet.training import signals
with signals.stop_signals(grace=float(sys.argv[1])) as stops:
    if sys.argv[2] == "saving":
        with stops.saving():
            print("begun", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(float(sys.argv[3])))
            print("saved", flush=True)
    else:
        print("begun", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(float(sys.argv[3])))
print("over", len(stops.received), flush=True)
"""


def stopped(*arguments, signum=signal.SIGTERM):
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True)
    assert process.stdout.readline() == "begun\n"
    begun = time.perf_counter()
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.perf_counter() - begun


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_cannot_answer_is_ended(signum):
    code, out, err, seconds = stopped(0.5, "compiling", 2e9, signum=signum)
    assert (code, out) == (128 + signum, "")
    assert f"{signum.name} in the midst of its work" in err
    assert 0.4 < seconds < 10


def test_a_checkpoint_is_finished_first():
    code, out, err, _ = stopped(0.1, "saving", 2e6)
    assert (code, out, err) == (0, "saved\nover 1\n", "")


def test_an_answer_in_time_is_not_cut_short():
    code, out, err, _ = stopped(30, "compiling", 2e6)
    assert (code, out, err) == (0, "over 1\n", "")


CHILD = """
import multiprocessing, time
from jaxdet.training import signals
spawn = multiprocessing.get_context("spawn")
spawn.Process(target=time.sleep, args=(60,), daemon=True).start()
signals.end_process(3)
"""


def test_no_child_outlives_a_process_that_is_ended():
    begun = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, timeout=50)
    assert ended.returncode == 3  # And its pipes have an end, since no child holds them.
    assert time.perf_counter() - begun < 40


def test_only_the_first_signal_is_caught():
    before = signal.getsignal(signal.SIGTERM)
    threads = threading.active_count()
    with signals.stop_signals() as stops:
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is before
        with pytest.raises(signals.Interrupted, match="after step 7"), stops.at_once(7):
            raise AssertionError  # It came before: nothing is begun any more.
    assert threading.active_count() == threads


def test_what_may_end_at_once_does():
    with signals.stop_signals() as stops:
        with (
            pytest.raises(signals.Interrupted, match="SIGINT after step 3") as stop,
            stops.at_once(3),
        ):
            signal.raise_signal(signal.SIGINT)
            raise AssertionError
        assert stop.value.exit_code == 130 and stop.value.step == 3


def test_other_threads_do_not_listen():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with signals.stop_signals() as stops:
            found.append((stops.received, signal.getsignal(signal.SIGTERM)))

    found = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [([], before)]
