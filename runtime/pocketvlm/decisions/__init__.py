"""Answers without writing: how likely each of some answers is, and how honest these probabilities are."""
