"""One exception in the main thread for a signal, at a place that can bear it."""

from __future__ import annotations

import os
import signal

import pytest

from cvtrain import interrupt
from cvtrain.interrupt import Interrupted, exit_code, hold, interruptible, raise_if_received


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
        monkeypatch.setattr(interrupt, "PATIENCE_SECONDS", 0.0)
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
