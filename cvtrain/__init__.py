"""cvtrain: a config-driven training framework for computer vision, run from the shell."""

__version__ = "0.1.0"
