"""The version of cvtrain: what pyproject.toml, ``cvtrain --version`` and run folders name."""

__version__ = "0.1.0"
