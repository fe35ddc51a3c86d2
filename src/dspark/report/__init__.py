"""Pages and tables made from records, never from models."""
