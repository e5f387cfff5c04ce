"""The command line: parses with Hydra alone, imports torch only when work starts."""
