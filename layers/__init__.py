"""The layers: one folder, one process each."""
