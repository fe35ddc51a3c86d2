"""Frozen Hugging Face models behind one attention seam."""
