"""A language model in libllama: vocabulary, tokenization and what the file says about it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from unicodedata import is_normalized, normalize

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, RequestError
from pocketvlm.native import library, log, pretokenizer
from pocketvlm.native.deferred_signals import signals_deferred
from pocketvlm.native.handle import Handle

_PARSED_ON_DEMAND = (2, 3)  # LLAMA_TOKEN_TYPE_UNKNOWN, LLAMA_TOKEN_TYPE_CONTROL
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 4, 1, 8, 16  # llama_token_attr
_NORMALIZERS, _PREFIXES = ("", "NFC"), ("", "first", "always")
_SPACES = " \u2581"  # the second stands for the first within tokens
_MROPE_TYPES = (8, 40)  # LLAMA_ROPE_TYPE_MROPE, LLAMA_ROPE_TYPE_IMROPE


class Model(Handle):
    """Weights and vocabulary; `vocab_only` loads the latter alone.

    `gpu_layers` (-1: all) go to the `device` of that number, or to whatever the build has, if it has any.

    `mapped` leaves all weights in the mapped file, instead of a copy of some in an order that this CPU likes better.
    `simulated` reads everything but the weights: such a model can tell what a context takes, and evaluate nothing.

    Raises ModelNotFoundError, or ModelFormatError with libllama's own reason.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vocab_only: bool = False,
        gpu_layers: int = -1,
        device: int | None = None,
        mapped: bool = False,
        simulated: bool = False,
    ) -> None:
        self._lib = library.llama()
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelNotFoundError("is a directory" if self.path.is_dir() else "no such file", self.path)
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        if device is not None:
            alone = (ctypes.c_void_p * 2)(library.device(device), None)
            params.devices, params.split_mode = ctypes.cast(alone, ctypes.c_void_p), 0
        params.use_extra_bufts = not mapped
        if simulated:
            params.no_alloc, params.load_mode = True, 0  # a mapped file fails an assertion
        log.forget_errors()
        with signals_deferred():
            raw = self._lib.llama_model_load_from_file(str(self.path).encode(), params)
            if not raw:
                raise ModelFormatError(f"libllama cannot load it: {log.last_error()}", self.path)
            super().__init__(raw, self._lib.llama_model_free)
        self._vocab = self._lib.llama_model_get_vocab(raw)
        self.n_vocab: int = self._lib.llama_vocab_n_tokens(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._matched: dict[bool, tuple[re.Pattern[str], dict[str, int]]] = {}
        self._normalizer, ends = self._text_of("pocketvlm.normalizer"), self._text_of("pocketvlm.end_token_ids")
        self._prefix, self._split = self._text_of("pocketvlm.space_prefix"), self._text_of("pocketvlm.split")
        told = f"{self._normalizer}; {self._prefix}; {self._split}; {ends}"
        known = self._normalizer in _NORMALIZERS and self._prefix in _PREFIXES
        known = known and (not self._split or pretokenizer.is_known(self._split))
        if not known or not re.fullmatch(r"[0-9 ]*", ends):
            self.close()
            raise ModelFormatError(
                f"has an unknown normalizer, space prefix or split, or broken ends: {told}", self.path
            )
        # What the original stops at. libllama goes by the spelling of tokens, `</s>` for one, as well.
        self._ends = frozenset(map(int, ends.split()))

    @property
    def vocab(self) -> object:
        """The vocabulary's pointer, for the other modules of this folder."""
        self.raw  # noqa: B018  # raises where the model is closed
        return self._vocab

    @property
    def n_embd_inp(self) -> int:
        """Width of one row of input embeddings; deepstack models take more than their hidden size."""
        return int(self._lib.llama_model_n_embd_inp(self.raw))

    @property
    def n_ctx_train(self) -> int:
        return int(self._lib.llama_model_n_ctx_train(self.raw))

    @property
    def n_params(self) -> int:
        return int(self._lib.llama_model_n_params(self.raw))

    @property
    def mrope(self) -> bool:
        """Positions have four sections (time, height, width, unused) instead of one."""
        return int(self._lib.llama_model_rope_type(self.raw)) in _MROPE_TYPES

    @property
    def recurrent(self) -> bool:
        """Whether some layers hold one state that every token changes, instead of keys and values for each."""
        return bool(self._lib.llama_model_is_recurrent(self.raw) or self._lib.llama_model_is_hybrid(self.raw))

    @property
    def window(self) -> int:
        """Tokens that layers with a sliding window look back, themselves included; 0 where none has one."""
        return int(self._lib.llama_model_n_swa(self.raw))

    @property
    def forgets(self) -> bool:
        """Whether a sequence cannot be truncated to any position that it had, unless its state was kept there."""
        return self.recurrent or self.window > 0

    @property
    def chat_template(self) -> str | None:
        found = self._lib.llama_model_chat_template(self.raw, None)
        return found.decode() if found else None

    @property
    def bos(self) -> int:
        return int(self._lib.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int:
        return int(self._lib.llama_vocab_eos(self.vocab))

    @property
    def adds_bos(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self.vocab))

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation (end of turn, end of text and their like)."""
        if self._ends:
            return token in self._ends
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    def token_text(self, token: int) -> str:
        """The vocabulary's own spelling of a token, "" for no token."""
        if not 0 <= token < self.n_vocab:
            return ""
        found = self._lib.llama_vocab_get_text(self.vocab, token)
        return found.decode("utf-8", "replace") if found else ""

    def control_tokens(self, types: Sequence[int]) -> dict[str, int]:
        """The tokens that `tokenize` parses with `special` only, by text; `types` is tokenizer.ggml.token_type."""
        wanted = (token for token, kind in enumerate(types) if kind in _PARSED_ON_DEMAND)
        return {text: token for token in wanted if (text := self.token_text(token))}

    def tokenize(self, text: str, *, special: bool, first: bool = False) -> list[int]:
        """Token ids of `text`, which may be the `first` of a prompt. With `special`, control tokens in it are parsed.

        What libllama gets wrong is made good here: it has no normalizers (the text between the tokens that are taken as
        they are spelled is normalized), it puts a space before every text or none (not before the first alone, nor only
        where there is none), its splits of other than ASCII text are approximations, and it takes some tokens for
        control tokens that the file says are none.
        """
        prefixed = self._prefix == "always" or (first and self._prefix == "first")
        if prefixed or self._splits(text) or (self._normalizer == "NFC" and not is_normalized("NFC", text)):
            return self._tokenize_parts(text, special, first)
        if not special and self._mistaken and self._mistaken.search(text):
            return self._tokenize_parts(text, special, first)
        return self._tokenize(text, special)

    def _tokenize_parts(self, text: str, special: bool, first: bool) -> list[int]:
        pattern, numbers = self._spelled(special)
        ids: list[int] = []
        for number, part in enumerate(pattern.split(text)):
            if number % 2:
                ids.append(numbers[part])
                continue
            told = normalize("NFC", part) if self._normalizer else part
            prefixed = self._prefix == "always" or (self._prefix == "first" and first and not number)
            if told and prefixed and told[0] not in _SPACES:
                told = f" {told}"
            ids += self._tokenize_words(told) if self._splits(told) else self._tokenize(told, False)
        return ids

    def _splits(self, text: str) -> bool:
        return bool(self._split) and not text.isascii()

    def _tokenize_words(self, text: str) -> list[int]:
        found = pretokenizer.split(self._split).findall(text)
        return [token for word in found for token in self._merges.encode(word.encode("utf-8", "surrogatepass"))]

    def _tokenize(self, text: str, special: bool) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        if not data:
            return []
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self.vocab, data, len(data), buffer, room, False, special)
        if count < 0:
            room = -count
            buffer = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(self.vocab, data, len(data), buffer, room, False, special)
        if count < 0:
            raise RequestError(f"the text is too long to tokenize ({len(data):,} bytes)", "messages")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to the answer; nothing for control tokens."""
        found = self._pieces.get(token)
        if found is None:
            mistaken = bool(self._ends) and _is_mistaken(self._lib.llama_vocab_get_attr(self.vocab, token))
            buffer = ctypes.create_string_buffer(256)
            count = self._lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, mistaken)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = self._lib.llama_token_to_piece(self.vocab, token, buffer, -count, 0, mistaken)
            found = self._pieces[token] = buffer.raw[: max(count, 0)]
        return found

    def _spelled(self, special: bool) -> tuple[re.Pattern[str], dict[str, int]]:
        """The tokens that are found in a text before it is split: where they stand, and their ids."""
        if special not in self._matched:
            wanted = _USER_DEFINED | (_CONTROL | _UNKNOWN) * special
            kinds = enumerate(self._attributes)
            numbers = {self.token_text(token): token for token, kind in kinds if kind & wanted and not kind & _NORMAL}
            self._matched[special] = _any_of(numbers), numbers
        return self._matched[special]

    @cached_property
    def _mistaken(self) -> re.Pattern[str] | None:
        """User-defined tokens that libllama took for control tokens, where the file can be trusted to know better."""
        if not self._ends:
            return None
        both = _USER_DEFINED | _CONTROL
        found = [self.token_text(token) for token, kind in enumerate(self._attributes) if kind & both == both]
        return _any_of(found) if found else None

    @cached_property
    def _merges(self) -> pretokenizer.BytePairMerges:
        others = _CONTROL | _USER_DEFINED
        kinds = enumerate(self._attributes)
        ids = {self.piece(token): token for token, kind in kinds if kind & _NORMAL and not kind & others}
        missing = [byte for byte in range(256) if bytes([byte]) not in ids]
        if missing:
            raise ModelFormatError(f"has pocketvlm.split, but no token for the byte {missing[0]:#04x}", self.path)
        return pretokenizer.BytePairMerges(ids)

    @cached_property
    def _attributes(self) -> list[int]:
        get, vocab = self._lib.llama_vocab_get_attr, self.vocab
        return [get(vocab, token) for token in range(self.n_vocab)]

    def _text_of(self, key: str) -> str:
        """A value of the file's metadata that is no array, "" where there is none."""
        buffer = ctypes.create_string_buffer(4096)
        length = self._lib.llama_model_meta_val_str(self.raw, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""


def _is_mistaken(attributes: int) -> bool:
    """libllama adds to the type that the file gives a token, so both are there."""
    return bool(attributes & _CONTROL and attributes & (_NORMAL | _USER_DEFINED))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """The longest one first, in a group, so that `split` keeps them."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)") + ")")
