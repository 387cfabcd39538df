"""What numbers depend on: the machine, its sensors, its noise."""
