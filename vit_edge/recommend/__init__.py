"""Which bundle to ship, and with which backend."""
