"""``python -m cvtrain``."""

import sys

from cvtrain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
