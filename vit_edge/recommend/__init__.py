"""The bundle to ship, and the backend to run it with."""
