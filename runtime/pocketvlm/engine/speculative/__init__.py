"""Speculative decoding without a second model: which tokens to draft, and how many of them to evaluate."""
