"""Beyond one machine: a bundle as a step of somebody else's engine, and folders of any size."""

COLUMNS = ("label", "index", "score")  # of the answers, by default
ROWS = 5000  # of a segment, and so of a shard, by default
