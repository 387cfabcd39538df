"""What reports share: the extra they need, their looks, plots, writing a file whole."""
