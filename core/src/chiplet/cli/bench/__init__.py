"""Benchmarks: each reports its command, machine and commit beside the figures."""
