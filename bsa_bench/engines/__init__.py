"""Who computes it: one object an engine, wrapping a library or one of our own engines."""
