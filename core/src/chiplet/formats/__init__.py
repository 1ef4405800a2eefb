"""Formats: checkpoints on disk, and where they come from."""
