"""Kernels written in Triton; all sizes are elements unless a name says otherwise."""
