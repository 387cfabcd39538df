"""A bundle answers: images in, labels or features out, on the terminal or into a file."""
