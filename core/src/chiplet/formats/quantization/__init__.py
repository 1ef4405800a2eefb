"""Quantization formats: ways in which core quantizes weights."""
