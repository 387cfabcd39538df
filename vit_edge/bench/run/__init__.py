"""Configurations taking turns, each in a process of its own."""
