"""Answers without writing: how likely each of some answers is, and how well these probabilities are calibrated."""
