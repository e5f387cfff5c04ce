"""One exception in the main thread for a signal, at a place that can bear it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cvtrain import signals
from cvtrain.signals import Interrupted, exit_code, hold, interruptible, raise_if_received


def held(done: list[str]) -> None:
    with hold():
        with hold():
            os.kill(os.getpid(), signal.SIGINT)
        done.append("all")


def test_a_signal_is_heard_at_the_end_of_what_must_be_whole() -> None:
    done: list[str] = []
    with interruptible():
        with pytest.raises(Interrupted) as caught:
            held(done)
        assert caught.value.code == 130
    assert done == ["all"]


def test_a_signal_sent_twice_does_not_disturb_the_ending(monkeypatch) -> None:
    with interruptible():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.0)
        with pytest.raises(Interrupted):  # somebody waits too long
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_not_forgotten_and_later_errors_are_of_its_making() -> None:
    lost = RuntimeError("Connection closed by peer")
    with interruptible():
        raise_if_received()
        assert exit_code(lost) is None
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert exit_code(lost) == 143
        assert exit_code(Interrupted(signal.SIGINT)) == 130
        with pytest.raises(Interrupted):
            raise_if_received()
    raise_if_received()
    assert exit_code(lost) is None


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_every_signal_has_its_code(number) -> None:
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert {143, 130, 129} >= {caught.value.code}


def test_one_inside_of_another_is_the_same_one() -> None:
    with interruptible():
        with pytest.raises(Interrupted), interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same wish, sent twice
        assert exit_code(RuntimeError("lost contact")) == 143


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            raise_if_received()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Dying:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where Python runs the handler


def lose_one_and_wait() -> None:
    Dying()
    time.sleep(10)


def test_a_signal_that_python_swallows_comes_again(capfd) -> None:
    with pytest.raises(Interrupted), interruptible():
        lose_one_and_wait()
    assert capfd.readouterr().err == "", "no traceback of an exception that was ignored"


OUTSIDE = """
import os, signal, sys, time
from cvtrain import signals
signals.leave_at_once()
if sys.argv[1] == "end":
    signals.ends_with(3)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
"""


@pytest.mark.parametrize(
    ("when", "code", "said"), [("start", 143, "cvtrain: stopped by SIGTERM\n"), ("end", 3, "")]
)
def test_outside_of_a_job_a_signal_ends_the_process_at_once(when, code, said) -> None:
    words = [sys.executable, "-c", OUTSIDE, when]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (code, said)
