"""Loops that PyTorch has no kernel for, compiled for this very CPU; each a function of numbers in memory."""
