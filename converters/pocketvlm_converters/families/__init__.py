"""One module per family, found by name: a new file is all that a new family needs."""
