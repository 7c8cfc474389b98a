"""Measure one operator: latency, phases, memory, work, device state."""
