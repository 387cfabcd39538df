"""Measuring: time (measure)."""
