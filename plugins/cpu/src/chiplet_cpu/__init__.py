"""Chiplet on CPUs."""
