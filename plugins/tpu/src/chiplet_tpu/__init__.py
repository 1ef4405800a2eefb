"""Chiplet on TPUs, through XLA."""
