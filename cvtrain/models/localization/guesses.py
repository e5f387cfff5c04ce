"""What localizers answer with: up to five guesses at the one object of an image."""

from __future__ import annotations

GUESSES = 5
"""Classes guessed an image, each with a box: as many as ILSVRC allows."""
