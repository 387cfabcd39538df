"""The report of benchmarks: Markdown with what Python brings, a page with the extra `report`."""
