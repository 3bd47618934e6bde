"""Checkpoints that people use, described by their configuration, and what they take, computed from it."""
