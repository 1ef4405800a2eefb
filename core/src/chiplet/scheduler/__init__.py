"""Scheduler: who runs when."""
