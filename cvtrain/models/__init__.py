"""Models in plain torch: one system a file, built on a backbone."""
