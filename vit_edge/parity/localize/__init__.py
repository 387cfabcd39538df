"""Where in the graph two models part."""
