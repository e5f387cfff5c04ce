"""Several runs of one command: multirun and studies."""
