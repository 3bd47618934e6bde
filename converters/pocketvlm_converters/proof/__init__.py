"""Prove that a bundle behaves as its checkpoint does."""
