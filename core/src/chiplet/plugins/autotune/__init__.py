"""Autotune: chooses by measurement, and remembers what was measured."""
