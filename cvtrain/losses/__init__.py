"""Losses: pure functions and small modules, in plain torch."""
