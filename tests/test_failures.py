from __future__ import annotations

import errno
import signal

import pytest
import torch

from cvtrain.errors import DataError, RunError
from cvtrain.failures import lost_contact, translate
from cvtrain.signals import Interrupted

CONFIG = {
    "data": {"batch_size": 16, "image_size": [64, 96], "num_workers": None},
    "trainer": {"precision": "32-true"},
}
CPU_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
)
DETERMINISTIC = (
    "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this"
)
WORKER = (
    "Caught DataError in DataLoader worker process 0.\n"
    "Original Traceback (most recent call last):\n"
    '  File "x.py", line 3, in y\ncvtrain.errors.DataError: a.jpg: is 3 x 4 now; start again\n'
)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
         ["2.00 GiB", "data.batch_size (now 16", "data.image_size (now [64, 96])", "32-true"]),
        (RuntimeError(CPU_MEMORY), ["400000000000 bytes", "data.batch_size"]),
        (MemoryError(), ["out of memory"]),
        (ValueError("Expected more than 1 value per channel when training, got input size "
                    "torch.Size([1, 512, 1, 1])"),
         ["data.batch_size=16", "one image is all there is", "data.image_size (now [64, 96])"]),
        (RuntimeError("The server socket has failed to listen on any local network address. port: "
                      "29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address "
                      "already in use"), ["is in use", "unset it"]),
        (OSError(errno.ENOSPC, "No space left on device", "/run/last.ckpt"),
         ["disk is full", "/run/last.ckpt"]),
        (RuntimeError(DETERMINISTIC),
         ["adaptive_max_pool2d_backward_cuda", "trainer.deterministic"]),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."),
         ["data.num_workers (now one a core)"]),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
         ["data.num_workers (now one a core)"]),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible"),
         ["bus error", "/dev/shm", "--shm-size", "data.num_workers=0"]),
        (RuntimeError("received 0 items of ancdata"), ["ulimit -n", "data.num_workers"]),
        (OSError(errno.EMFILE, "Too many open files"), ["ulimit -n", "data.num_workers"]),
        (RuntimeError("Expected to have finished reduction in the prior iteration before ..."),
         ["trainer.strategy=ddp_find_unused_parameters_true"]),
    ],
)  # fmt: skip
def test_known_errors_name_the_knob_in_one_line(error, parts) -> None:
    known = translate(error, CONFIG)
    assert isinstance(known, RunError)
    assert "\n" not in str(known)
    for part in parts:
        assert part in str(known)


def test_an_error_of_a_loader_process_loses_its_traceback() -> None:
    known = translate(DataError(WORKER), CONFIG)
    assert isinstance(known, DataError)
    assert str(known) == "a.jpg: is 3 x 4 now; start again"
    known = translate(RuntimeError(WORKER), CONFIG)
    assert isinstance(known, DataError)
    assert str(known) == "a.jpg: is 3 x 4 now; start again"


def test_errors_for_users_stay_and_bugs_are_not_dressed_up() -> None:
    error = RunError("as it is")
    assert translate(error, CONFIG) is error
    assert translate(KeyError("x"), CONFIG) is None
    assert translate(RuntimeError("shapes do not match"), CONFIG) is None


def test_who_only_lost_contact() -> None:
    assert lost_contact(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert not lost_contact(RuntimeError("shapes do not match"))
    assert not lost_contact(ValueError("Connection closed by peer"))


def test_exit_codes_of_signals() -> None:
    assert Interrupted(signal.SIGTERM).code == 143
    assert Interrupted(signal.SIGINT).code == 130


def test_a_batch_of_one_image_is_said_to_be_too_small() -> None:
    norm = torch.nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        norm(torch.zeros(1, 4, 1, 1))
    config = {**CONFIG, "data": {**CONFIG["data"], "batch_size": 1}}
    assert "give data.batch_size=2 or more" in str(translate(caught.value, config))
