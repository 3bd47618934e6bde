"""Names that a person may have meant, for the end of a message."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_CLOSE = 0.7  # of 1, how similar a known name must be to be suggested
_LONGEST = 100  # characters of a name that are compared


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a message that suggests the most similar name; empty where none is similar."""
    close = get_close_matches(name[:_LONGEST].lower(), known, n=1, cutoff=_CLOSE)
    return f"; did you mean {close[0]}?" if close else ""


def similar_names(name: str, known: Sequence[str], most: int = 5) -> list[str]:
    """Return up to `most` known names that begin with `name`, or else contain it, or else are written much like it."""
    wanted = name[:_LONGEST].casefold()
    folded = {other.casefold(): other for other in known}
    begin = [other for key, other in folded.items() if wanted and key.startswith(wanted)]
    contain = [other for key, other in folded.items() if wanted and wanted in key]
    close = [folded[key] for key in get_close_matches(wanted, folded, n=most, cutoff=_CLOSE)]
    return (begin or contain or close)[:most]


def one_of(names: Sequence[str]) -> str:
    """Return names as the end of a sentence: a, b or c."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))
