"""Beyond one machine: a bundle as a step of somebody else's engine, and folders of any size."""
