"""llguidance: which tokens may come next so that an answer follows a grammar."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import llguidance
import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError, UnsupportedError
from pocketvlm.native import library
from pocketvlm.native.llama import Model

MAX_GRAMMAR = 1 << 18  # characters
_LONGEST = 128  # bytes of a token: llguidance's trie aborts beyond 255; longer runs of white space are never needed
_SPECIAL = b"\xff"  # begins no text; what llguidance takes for a control token
# Work for one token, in llguidance's units: some 10 ms, in which the streams beside it wait.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 150_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Constraint:
    """`grammar` is Lark as llguidance has it, with %json; `param` the path of the request's field, for errors."""

    grammar: str
    param: str


class Vocabulary:
    """A model's tokens, as a trie. Made in some 0.1 to 0.5 s; any number of constraints share it."""

    def __init__(self, model: Model) -> None:
        tokens = [_spelled(model, token) for token in range(model.n_vocab)]
        ends = [token for token in range(model.n_vocab) if model.is_end(token)] or [model.eos]
        pointer = ctypes.cast(library.llama().llama_tokenize, ctypes.c_void_p).value
        self.n_vocab = model.n_vocab
        self.tokenizer = _guarded(
            lambda: llguidance.LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]  # its stubs lack it
                tokens=tokens, vocab_ptr=model.vocab, tokenize_fptr=pointer, eos_token=ends, slices=None
            )
        )


class Matcher:
    """How far one answer has come in its grammar. One thread at a time.

    Raises UnsupportedError for a grammar that cannot be compiled within the limits, or that nothing fits.
    """

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint) -> None:
        self._param = constraint.param
        if len(constraint.grammar) > MAX_GRAMMAR:
            raise UnsupportedError(f"is too large: over {MAX_GRAMMAR:,} characters", self._param)
        self._n_vocab = vocabulary.n_vocab
        self._mask = np.zeros((vocabulary.n_vocab + 31) // 32, np.int32)
        limits = llguidance.LLParserLimits(**_LIMITS)
        try:
            self._raw = _guarded(
                lambda: llguidance.LLMatcher(vocabulary.tokenizer, constraint.grammar, log_level=0, limits=limits)
            )
            self._check()
            self._fill()
        except EngineError as error:
            told = "nothing fits it" if str(error).startswith("NoExtension") else str(error)
            raise UnsupportedError(f"cannot be held to: {told}", self._param) from None

    @property
    def complete(self) -> bool:
        """Nothing can follow."""
        return bool(_guarded(self._raw.is_stopped))

    def restrict(self, logits: npt.NDArray[np.float32]) -> None:
        """Make what may not come next impossible, in place. float32 [n_vocab].

        Raises UnsupportedError where that is more work than one token may take.
        """
        try:
            self._fill()
        except EngineError as error:
            raise UnsupportedError(f"is too complex to be held to: {error}", self._param) from None
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=self._n_vocab)
        logits[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        if not _guarded(lambda: self._raw.consume_token(token)):
            raise UnsupportedError(f"is too complex to be held to: {_reason(self._raw.get_error())}", self._param)

    def _fill(self) -> None:
        mask = self._mask
        _guarded(lambda: self._raw.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes))
        self._check()
        if not mask.any():
            raise EngineError("nothing fits it")

    def _check(self) -> None:
        if _guarded(self._raw.is_error):
            raise EngineError(_reason(_guarded(self._raw.get_error)))


def _spelled(model: Model, token: int) -> bytes:
    text = model.piece(token)
    if not text:
        return _SPECIAL + model.token_text(token).encode("utf-8", "replace")[:_LONGEST]
    return text if len(text) <= _LONGEST else b""


def _reason(told: str) -> str:
    """The first lines of llguidance's own, without where in its files it was."""
    told = re.split(r"\n\s*\d+ \| |<non-verbose/>|<state>", told)[0]
    told = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: |^Parser Error: ", "", told)
    told = re.sub(r"(?s)^(regex parse error: ).*error: ", r"\1", " ".join(told.split()))
    return told[:300] or "the grammar failed"


def _guarded(work: Callable[[], T]) -> T:
    """A panic in Rust is no Exception to Python; here it is an EngineError."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of llguidance derives from BaseException
        raise EngineError(_reason(str(error))) from None
