"""Drafters: the models that learn to propose a block of tokens for a frozen target to verify.

They are handed the target's embedding, head and hidden states as tensors and never import a target.
"""
