"""Confidence-scheduled speculative decoding: drafters, exact verification, training, calibration and serving.

Importing this package imports nothing else: PyTorch and the rest come with the rooms that need them.
"""

__version__ = "0.1.0"
