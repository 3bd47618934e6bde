"""A check of the encoders' feed-forward layers, for libmtmd."""

from __future__ import annotations

from pocketvlm_converters.checkpoint.folder import Section


def refuse_square(config: Section, inner: int, hidden: int, key: str = "intermediate_size") -> None:
    """Raise CheckpointError, naming `key`, if the MLP is exactly as wide as the encoder.

    libmtmd assumes that a square ffn_down was written by an old converter, and swaps it with ffn_up (clip.cpp).
    """
    if inner == hidden:
        raise config.wrong(
            key, f"an MLP as wide as the encoder ({hidden}) is not supported, because libmtmd misreads it"
        )
