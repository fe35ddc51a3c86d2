"""Layers of drafters: plain modules on tensors, without any model's configuration or checkpoint format."""
