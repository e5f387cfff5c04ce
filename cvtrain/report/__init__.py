"""What a run leaves for people: result files, tables and plots."""
