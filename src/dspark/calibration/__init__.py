"""Fits of confidence maps to what became of drafts; applying them is ``speculation.confidence``."""
