"""Compare answers: across runtimes, precisions and machines."""
