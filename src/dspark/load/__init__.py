"""Traffic for the engine, and what came of it."""
