"""This computer: its CPUs, memory, GPUs, limits and child processes."""
