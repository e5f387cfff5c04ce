"""The errors a user sees: one line, the bad value, the fix. Nothing here imports torch.

The command line prints ``str(error)`` and exits with ``error.exit_code``; any other exception is
reported as a bug or, where it is recognized (out of memory, a full disk), translated first.
"""

from __future__ import annotations


class CvtrainError(Exception):
    """Base of all errors meant for users; the message is one line and says what to do."""

    exit_code = 1


class UsageError(CvtrainError):
    """The command was wrong: an unknown key, a value of the wrong type, no such path."""

    exit_code = 2


class HeldError(UsageError):
    """Another process writes to the folder that was named."""


class DataError(CvtrainError):
    """The data set cannot be used as it is."""


class RunError(CvtrainError):
    """The run failed: out of memory, a full disk, a loss that is not finite, a missing device."""


class CheckpointError(CvtrainError):
    """A checkpoint or a weights file is truncated, unsafe, or does not fit."""
