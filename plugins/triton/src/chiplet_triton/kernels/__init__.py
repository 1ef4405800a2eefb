"""Kernels: Triton source, and nothing that knows of Chiplet.

Capital letters are compile-time constants. A kernel with `OVERLAP` may be launched before its
predecessor has ended (programmatic dependent launch): it then waits before its first read of
anything that another kernel wrote.
"""
