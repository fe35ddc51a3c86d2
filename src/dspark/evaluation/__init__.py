"""Measuring acceptance, speed and exactness."""
