"""Reports of parity results: JUnit XML, one HTML page, and results of several machines together."""
