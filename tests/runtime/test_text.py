"""Token bytes to text, against the whole text decoded and cut at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.structured.detokenizer import Detokenizer


def fed(data: bytes, cuts: list[int], stops: tuple[str, ...]) -> tuple[list[str], bool]:
    """What comes out when the bytes come in pieces, and whether it stopped."""
    assembler = Detokenizer(stops)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    deltas = [assembler.push(data[start:end]) for start, end in pairwise(edges)]
    return [*deltas, assembler.finish()], assembler.stopped


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The definition, letter by letter: the stop that is complete first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


few = st.one_of(st.text(alphabet="ab", max_size=12), st.text(alphabet="ab\nй😀", max_size=12))


@given(
    st.one_of(few.map(str.encode), st.binary(max_size=20), st.text(max_size=20).map(str.encode)),
    st.lists(st.integers(0, 1000), max_size=12),
    st.lists(st.text(alphabet="ab\nй😀\ufffd", min_size=1, max_size=4), max_size=4).map(tuple),
)
def test_any_split_gives_the_whole_text_cut_at_the_first_stop(
    data: bytes, cuts: list[int], stops: tuple[str, ...]
) -> None:
    deltas, stopped = fed(data, cuts, stops)
    assert ("".join(deltas), stopped) == cut(data.decode("utf-8", "replace"), stops)


@given(few, st.text(alphabet="ab", min_size=1, max_size=4))
def test_no_beginning_of_a_stop_string_leaks(before: str, stop: str) -> None:
    """After each byte, what was shown is a beginning of the final text, whatever comes next."""
    data = (before + stop).encode()
    expected, _ = cut(before + stop, (stop,))
    assembler, shown = Detokenizer((stop,)), ""
    for byte in data:
        shown += assembler.push(bytes([byte]))
        assert expected.startswith(shown)
    assert assembler.stopped
    assert shown == expected


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    assembler = Detokenizer()
    assert [assembler.push(bytes([byte])) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def test_text_is_shown_as_soon_as_it_cannot_be_a_stop_string() -> None:
    assembler = Detokenizer(("<end>",))
    assert assembler.push(b"ok <en") == "ok "
    assert assembler.push(b"ter") == "<enter"
    assert assembler.push(b" <") == " "
    assert assembler.finish() == "<"


def test_nothing_follows_a_stop() -> None:
    assembler = Detokenizer(("STOP",))
    assert assembler.push(b"a STO") == "a "
    assert not assembler.stopped
    assert assembler.push(b"P b") == ""
    assert assembler.stopped
    assert assembler.push(b"more") == ""
    assert assembler.finish() == ""


def test_the_stop_that_is_complete_first_wins_and_of_equals_the_longest() -> None:
    for data in (b"xabc", b"xabcd"):  # the same, however many bytes a token has
        assembler = Detokenizer(("abcd", "bc"))
        assert assembler.push(data) == "xa"
        assert assembler.stopped
    assembler = Detokenizer(("bc", "abc"))
    assert assembler.push(b"xabc") == "x"


def test_an_unfinished_character_at_the_end_is_replaced() -> None:
    assembler = Detokenizer()
    assert assembler.push("né".encode()[:-1]) == "n"
    assert assembler.finish() == "\ufffd"
    assert assembler.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Detokenizer(("a", ""))
