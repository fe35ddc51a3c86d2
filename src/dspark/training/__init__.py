"""Training a drafter: anchors, losses, schedule, validation, runs on disk."""
