"""Ranks that are processes: how rank 0 starts them, leads them, and what one of them is."""
