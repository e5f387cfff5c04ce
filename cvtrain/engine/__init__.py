"""Train, evaluate, predict: what the command line calls."""
