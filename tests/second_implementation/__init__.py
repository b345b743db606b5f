"""Portable arithmetic a second time, from its documentation alone, in NumPy, without the package's own numerics.

It is no faster than it must be, and may be read beside docs/PORTABLE.md as a check of it. PyTorch gives its random
words (`draws.py`) and nothing else.
"""
