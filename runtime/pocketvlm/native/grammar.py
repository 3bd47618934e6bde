"""Constrain an answer to a grammar with llguidance: which tokens may come next."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass, replace

import llguidance
import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError, RequestError, UnsupportedError, shortened
from pocketvlm.native import library
from pocketvlm.native.grammar_compiler import catch_panic, compile_grammar, reason
from pocketvlm.native.llama import Model

logger = logging.getLogger(__name__)
MAX_GRAMMAR = 1 << 18  # characters
# Bytes of a token. llguidance's trie aborts beyond 255; only runs of white space are longer, and none is ever needed.
_MAX_TOKEN_BYTES = 128
_CONTROL_PREFIX = b"\xff"  # llguidance takes a token for a control token if it begins with this, as no text does


@dataclass(frozen=True)
class SchemaRule:
    """A rule of a grammar, `name: text`, that is a JSON Schema, whose path in the request is `param`.

    `weaker` replaces a text that cannot be compiled. Without it, that is an error.
    """

    name: str
    text: str
    param: str
    weaker: str | None = None

    @property
    def grammar(self) -> str:
        """The schema as a grammar of its own."""
        return f"%llguidance {{}}\nstart: {self.text}"


@dataclass(frozen=True)
class Constraint:
    """`grammar` is llguidance's Lark, which the `schemas` complete. `param` is the path of the request's field.

    `begun` is the beginning of a text that follows the grammar; the answer continues it.
    """

    grammar: str
    param: str
    schemas: tuple[SchemaRule, ...] = ()
    begun: str = ""

    @property
    def text(self) -> str:
        """The whole grammar."""
        return "\n".join([self.grammar, *(f"{schema.name}: {schema.text}" for schema in self.schemas)])


class Vocabulary:
    """A model's tokens as a trie, which any number of matchers share. Creating one takes 0.1 to 0.5 s."""

    def __init__(self, model: Model) -> None:
        tokens = [_spelling(model, token) for token in range(model.n_vocab)]
        ends = [token for token in range(model.n_vocab) if model.is_end(token)] or [model.eos]
        pointer = ctypes.cast(library.llama().llama_tokenize, ctypes.c_void_p).value
        self.n_vocab = model.n_vocab
        self.tokenizer = catch_panic(
            lambda: llguidance.LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]  # its stubs lack it
                tokens=tokens, vocab_ptr=model.vocab, tokenize_fptr=pointer, eos_token=ends, slices=None
            )
        )


class Matcher:
    """The state of one answer in its grammar. Use it from one thread at a time.

    Raises UnsupportedError for a grammar that cannot be compiled within the limits, or that no text matches.
    """

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint) -> None:
        self._param = constraint.param
        if len(constraint.text) > MAX_GRAMMAR:
            raise UnsupportedError(f"is too large: its grammar has over {MAX_GRAMMAR:,} characters", self._param)
        self._n_vocab = vocabulary.n_vocab
        self._mask = np.zeros((vocabulary.n_vocab + 31) // 32, np.int32)
        try:
            self._compile(vocabulary, constraint.text)
        except EngineError as error:
            weaker = replace(
                constraint, schemas=tuple(self._compilable(vocabulary, rule) for rule in constraint.schemas)
            )
            try:
                if weaker == constraint:
                    raise
                self._compile(vocabulary, weaker.text)
            except EngineError:
                raise _refusal(error, self._param) from None
        if constraint.begun:
            self._begin(vocabulary, constraint.begun)

    def _compile(self, vocabulary: Vocabulary, grammar: str) -> None:
        """Raises EngineError."""
        self._raw = compile_grammar(vocabulary.tokenizer, grammar)
        self._compute_mask()

    def _compilable(self, vocabulary: Vocabulary, rule: SchemaRule) -> SchemaRule:
        """Return a schema's rule, or the weaker one if it cannot be compiled. Raises UnsupportedError without one."""
        try:
            self._compile(vocabulary, rule.grammar)
        except EngineError as error:
            if rule.weaker is None:
                raise _refusal(error, rule.param) from None
            # A tool's index says enough: the rest of a path is what the client wrote.
            logger.warning("%s: its schema is not enforced", ".".join(rule.param.split(".")[:2]))
            return replace(rule, text=rule.weaker)
        return rule

    def _begin(self, vocabulary: Vocabulary, text: str) -> None:
        """Take the beginning of the answer. Its tokens may differ from the prompt's, because only bytes count here.

        Raises RequestError where the grammar does not allow it.
        """
        try:
            tokens = catch_panic(lambda: vocabulary.tokenizer.greedy_tokenize(text))
            allowed = catch_panic(lambda: self._raw.try_consume_tokens(tokens)) == len(tokens)
            self._check()
            if allowed and not self.complete:
                self._compute_mask()
        except EngineError:
            allowed = False
        if not allowed:
            raise RequestError(f"the last one does not begin an answer that {self._param} allows", "messages")

    @property
    def complete(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return bool(catch_panic(self._raw.is_stopped))

    def restrict(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of tokens that may not come next to -inf, in place. float32 [n_vocab].

        Raises UnsupportedError where that is more work than one token may take.
        """
        try:
            self._compute_mask()
        except EngineError as error:
            raise UnsupportedError(f"is too complex to enforce: {shortened(error)}", self._param) from None
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=self._n_vocab)
        logits[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        """Add a token to the answer. Raises UnsupportedError where that is too much work."""
        if not catch_panic(lambda: self._raw.consume_token(token)):
            raise UnsupportedError(f"is too complex to enforce: {reason(self._raw.get_error())}", self._param)

    def _compute_mask(self) -> None:
        mask = self._mask
        catch_panic(lambda: self._raw.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes))
        self._check()
        if not mask.any():
            raise EngineError("no text matches it")

    def _check(self) -> None:
        if catch_panic(self._raw.is_error):
            raise EngineError(reason(catch_panic(self._raw.get_error)))


def _refusal(error: EngineError, param: str) -> UnsupportedError:
    reason = "no text matches it" if str(error).startswith("NoExtension") else str(error)
    return UnsupportedError(f"cannot be enforced: {shortened(reason)}", param)


def _spelling(model: Model, token: int) -> bytes:
    """Return the bytes of a token for the trie, b"" for one that is too long for it."""
    text = model.piece(token)
    if not text:
        return _CONTROL_PREFIX + model.token_text(token).encode("utf-8", "replace")[:_MAX_TOKEN_BYTES]
    return text if len(text) <= _MAX_TOKEN_BYTES else b""
