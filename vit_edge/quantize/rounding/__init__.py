"""Ranges, scales and rounding of weights and activations."""
