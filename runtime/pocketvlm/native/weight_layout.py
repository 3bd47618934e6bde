"""The ways in which the CPU can hold a model's weights and compute with them."""

from __future__ import annotations

from enum import Enum


class WeightLayout(Enum):
    """`REORDERED`: libllama copies the types that it knows to reorder for this CPU, and leaves the others in the file.

    `PLAIN`: all stay in the mapped file. `ACCELERATED`: they do, and the accelerator computes the products of prompts.
    `REORDERED_ACCELERATED`: it computes those of weights that are not reordered, or in an order that it reads.
    """

    REORDERED = "reordered"
    PLAIN = "plain"
    ACCELERATED = "accelerated"
    REORDERED_ACCELERATED = "reordered and accelerated"

    @property
    def mapped(self) -> bool:
        """Whether all weights stay in the mapped file."""
        return self in (WeightLayout.PLAIN, WeightLayout.ACCELERATED)

    @property
    def accelerated(self) -> bool:
        return self in (WeightLayout.ACCELERATED, WeightLayout.REORDERED_ACCELERATED)
