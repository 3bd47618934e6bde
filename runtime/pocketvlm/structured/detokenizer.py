"""Token bytes -> text that may be shown: whole UTF-8 characters, and never the beginning of a stop string. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Turns the bytes of token after token into text deltas.

    The deltas together are the whole text, decoded as `bytes.decode("utf-8", "replace")` would, and cut before the
    first stop string: the one that is complete first, and of several that end at the same character the longest. The
    result does not depend on how the bytes are split into tokens. Generation can end with the token that completes the
    stop string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self.stop: str | None = None  # the stop string that was met
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # always the possible beginning of a stop string

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def push(self, data: bytes) -> str:
        """Return the text that may be shown now; empty once `stopped`."""
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back, because no token follows; empty once `stopped`."""
        text = self._advance(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _advance(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        if (found := self._first_stop(text)) is not None:
            begin, end = found
            self.stop, self._held = text[begin:end], ""
            return text[:begin]
        shown = len(text) - self._stop_prefix_length(text)
        self._held = text[shown:]
        return text[:shown]

    def _first_stop(self, text: str) -> tuple[int, int] | None:
        """Return where the first stop string begins and ends."""
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not matches:
            return None
        end, begin = min(matches)
        return begin, end

    def _stop_prefix_length(self, text: str) -> int:
        """Return the length of the longest end of `text` with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
