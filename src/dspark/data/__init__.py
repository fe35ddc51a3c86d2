"""Prompts, answers of the target, and the features a drafter is trained on."""
