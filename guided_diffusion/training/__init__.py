"""Training loops and their resumption."""
