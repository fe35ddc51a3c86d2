"""Shipped training recipes, one YAML file each."""
