"""What libmtmd wants of every encoder's feed-forward layers."""

from __future__ import annotations

from pocketvlm_converters.checkpoint.folder import Section


def refuse_square(config: Section, inner: int, hidden: int, key: str = "intermediate_size") -> None:
    """CheckpointError where they are as wide as the encoder; `key` says how wide they are.

    libmtmd takes a square ffn_down for the work of an old converter and swaps it with ffn_up (clip.cpp).
    """
    if inner == hidden:
        raise config.wrong(key, "an MLP as wide as the encoder is one that libmtmd misreads")
