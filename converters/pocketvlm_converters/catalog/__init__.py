"""The catalogue: popular checkpoints with their configuration, and the sizes and memory computed from it."""
