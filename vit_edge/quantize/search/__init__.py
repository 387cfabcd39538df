"""The search for what to leave in float: errors measured one operator at a time."""
