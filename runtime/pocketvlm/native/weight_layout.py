"""The ways in which the CPU can hold a model's weights and compute with them."""

from __future__ import annotations

from enum import Enum


class WeightLayout(Enum):
    """`REORDERED`: libllama copies the types that it knows to reorder for this CPU, and leaves the others in the file.

    `PLAIN`: all stay in the mapped file. `ACCELERATED`: they do, and the accelerator computes the products of prompts.
    """

    REORDERED = "reordered"
    PLAIN = "plain"
    ACCELERATED = "accelerated"

    @property
    def mapped(self) -> bool:
        """Whether all weights stay in the mapped file."""
        return self is not WeightLayout.REORDERED

    @property
    def accelerated(self) -> bool:
        return self is WeightLayout.ACCELERATED
