"""Layers that model files are made of."""
