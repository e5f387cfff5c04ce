"""``python -m cvtrain``, and the command ``cvtrain``: signals are answered before anything else."""

import sys

from cvtrain.signals import leave_at_once


def main() -> int:
    """Run this process's command line; the exit code."""
    leave_at_once()
    from cvtrain.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
