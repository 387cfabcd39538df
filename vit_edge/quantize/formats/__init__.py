"""Number formats: integers, blocks of them, halves, E4M3."""
