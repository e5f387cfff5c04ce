"""What surrounds every job: signals, logging, known errors in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cvtrain.engine.logs import RunLog, log_quietly, run_log
from cvtrain.engine.process_group import leave_world, speaks
from cvtrain.failures import translate
from cvtrain.signals import interruptible


@contextmanager
def session(config: Mapping[str, Any]) -> Iterator[RunLog]:
    """Run a job inside.

    SIGTERM and Ctrl-C raise ``Interrupted``; an error of a known kind is raised as a CvtrainError;
    either way it is in train.log, once that is open.
    """
    with interruptible(), run_log(speaks()) as log:
        try:
            yield log
        except Exception as error:
            known = translate(error, config)
            log_quietly(f"{type(known or error).__name__}: {known or error}")
            if known is None or known is error:
                raise
            raise known from error
        finally:
            leave_world()
