"""The law of lossless speculative sampling: pure functions on small tensors, no modules, no device code."""
