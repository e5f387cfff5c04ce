"""Data sets: readers, the gate, loaders."""
