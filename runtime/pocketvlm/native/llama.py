"""A language model in libllama: its vocabulary, its tokenization and its properties."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from unicodedata import is_normalized, normalize

from pocketvlm.errors import ModelFormatError, ModelNotFoundError, RequestError, quoted
from pocketvlm.native import library, log, pretokenizer
from pocketvlm.native.deferred_signals import signals_deferred
from pocketvlm.native.handle import Handle
from pocketvlm.native.loose_marks import is_mark, is_word, marked_text, readable_characters

_log = logging.getLogger(__name__)
_SPM, _BPE = 1, 2  # llama_vocab_type
_PARSED_ON_DEMAND = (2, 3)  # LLAMA_TOKEN_TYPE_UNKNOWN, LLAMA_TOKEN_TYPE_CONTROL
_UNKNOWN, _UNUSED, _NORMAL, _CONTROL, _USER_DEFINED = 1, 2, 4, 8, 16  # llama_token_attr
_NORMALIZERS, _SPACE_PREFIXES = ("", "NFC"), ("", "first", "always")
# Values of tokenizer.ggml.pre whose original tokenizers normalize to NFC, which no key of GGUF says.
_NFC_SPLITS = "qwen2 qwen35 command-r tiny_aya mpt olmo".split()
_SPACES = " \u2581"  # within tokens, the second stands for the first
_MROPE_TYPES = (8, 40)  # LLAMA_ROPE_TYPE_MROPE, LLAMA_ROPE_TYPE_IMROPE


class Model(Handle):
    """The weights and the vocabulary of a GGUF file; with `vocab_only`, the vocabulary alone.

    `gpu_layers` (-1: all) are offloaded to the `device` of that number, or to the GPUs that the build has.

    `mapped` leaves all weights in the mapped file. Otherwise some are copied into an order that is faster on this CPU.
    `simulated` reads everything but the weights: contexts of such a model report their memory, and evaluate nothing.

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
        params.use_extra_bufts = not mapped and library.reorders()
        if simulated:
            params.no_alloc, params.load_mode = True, 0  # a mapped file fails an assertion
        log.forget_errors()
        with signals_deferred():
            raw = self._lib.llama_model_load_from_file(str(self.path).encode(), params)
            if not raw:
                raise ModelFormatError(f"libllama cannot load it: {log.last_error()}", self.path)
            super().__init__(raw, self._lib.llama_model_free)
        self.n_vocab: int = self._lib.llama_vocab_n_tokens(self.vocab)
        self._pieces: dict[int, bytes] = {}
        self._literals: dict[bool, tuple[re.Pattern[str], dict[str, int]]] = {}
        self._normalizer, self._split = self._metadata("pocketvlm.normalizer"), self._metadata("pocketvlm.split")
        self._space_prefix, ends = self._metadata("pocketvlm.space_prefix"), self._metadata("pocketvlm.end_token_ids")
        known = self._normalizer in _NORMALIZERS and self._space_prefix in _SPACE_PREFIXES
        known = known and (not self._split or pretokenizer.is_known(self._split))
        if not known or not re.fullmatch(r"[0-9 ]*", ends):
            self.close()
            raise ModelFormatError(
                f"has an unknown normalizer {quoted(self._normalizer)}, space prefix {quoted(self._space_prefix)} or "
                f"split {quoted(self._split)}, or bad end tokens {quoted(ends)}; convert it with this version of "
                "pocketvlm",
                self.path,
            )
        # The tokens that the original stops at. Without them libllama also goes by spellings such as `</s>`.
        self._ends = frozenset(map(int, ends.split()))
        # Files that pocketvlm converts say what the original does; in those of others it has to be inferred.
        self._foreign = not self._ends
        if self._foreign and self._metadata("tokenizer.ggml.pre") in _NFC_SPLITS:
            self._normalizer = "NFC"
        self._more_ends: frozenset[int] = frozenset()

    @property
    def vocab(self) -> object:
        """The pointer to the vocabulary, for the other modules of this folder."""
        return self._lib.llama_model_get_vocab(self.raw)

    @property
    def n_embd_inp(self) -> int:
        """The width of a row of input embeddings. In deepstack models it is larger than the hidden size."""
        return int(self._lib.llama_model_n_embd_inp(self.raw))

    @property
    def n_ctx_train(self) -> int:
        """The context size that the model was trained with, in tokens."""
        return int(self._lib.llama_model_n_ctx_train(self.raw))

    @property
    def n_params(self) -> int:
        return int(self._lib.llama_model_n_params(self.raw))

    @property
    def mrope(self) -> bool:
        """Whether positions have four sections (time, height, width, unused) instead of one."""
        return int(self._lib.llama_model_rope_type(self.raw)) in _MROPE_TYPES

    @property
    def recurrent(self) -> bool:
        """Whether some layers have one state that every token changes, instead of keys and values for each token."""
        return bool(self._lib.llama_model_is_recurrent(self.raw) or self._lib.llama_model_is_hybrid(self.raw))

    @property
    def window(self) -> int:
        """The size of the sliding window in tokens, including the current one; 0 where no layer has a window."""
        return int(self._lib.llama_model_n_swa(self.raw))

    @property
    def needs_checkpoints(self) -> bool:
        """Whether a sequence can be truncated only to positions where its state was saved."""
        return self.recurrent or self.window > 0

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, None where the file has none. Raises ModelFormatError."""
        template = self._lib.llama_model_chat_template(self.raw, None)
        try:
            return template.decode() if template else None
        except UnicodeDecodeError:
            raise ModelFormatError("its chat template is not UTF-8", self.path) from None

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
        """Return whether `token` ends a generation (end of turn, end of text and similar)."""
        if token in self._more_ends or self._ends:
            return token in self._more_ends or token in self._ends
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    @cached_property
    def ends(self) -> list[int]:
        """The tokens for which `is_end` is true."""
        return [token for token in range(self.n_vocab) if self.is_end(token)]

    def end_at(self, token: int) -> None:
        """Let `token` end a generation, too."""
        self._more_ends |= {token}
        self.__dict__.pop("ends", None)

    def is_mark(self, token: int) -> bool:
        """Return whether `token` is a control token or spelled like one, and is not made by merges."""
        text, bits = self.token_text(token), self._lib.llama_vocab_get_attr(self.vocab, token)
        return bool(bits & _CONTROL) or (bool(bits & _USER_DEFINED) and is_mark(text)) or text in self._loose_marks

    def token_text(self, token: int) -> str:
        """Return the vocabulary's own spelling of a token, "" for an id that is not in it."""
        if not 0 <= token < self.n_vocab:
            return ""
        text = self._lib.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    def control_tokens(self, types: Sequence[int]) -> dict[str, int]:
        """Return the ids of the tokens that `tokenize` parses only with `special`, by their text.

        `types` is tokenizer.ggml.token_type. In files of others, tokens that only can be marks are among them.
        """
        tokens = [token for token, kind in enumerate(types) if kind in _PARSED_ON_DEMAND] + [*self._more_ends]
        return self._loose_marks | {text: token for token in tokens if (text := self.token_text(token))}

    def tokenize(self, text: str, *, special: bool, first: bool = False) -> list[int]:
        """Return the token ids of `text`; `first` where it begins the prompt. With `special`, parse control tokens.

        Corrects what libllama does otherwise than the original tokenizers. It has no normalizers; here, the text
        between literal tokens is normalized. It adds a space before every text or before none, not only before the
        first or where the text has none yet. It splits text outside ASCII only approximately. It treats some tokens as
        control tokens although the file says that they are not.
        """
        prefixed = self._space_prefix == "always" or (first and self._space_prefix == "first")
        if prefixed or self._needs_split(text) or (self._normalizer == "NFC" and not is_normalized("NFC", text)):
            return self._tokenize_parts(text, special, first)
        if special and self._unparsed_marks and self._unparsed_marks.search(text):
            return self._tokenize_parts(text, special, first)
        if not special and self._false_control_tokens and self._false_control_tokens.search(text):
            return self._tokenize_parts(text, special, first)
        return self._tokenize(text, special)

    def _tokenize_parts(self, text: str, special: bool, first: bool) -> list[int]:
        pattern, literal_ids = self._literal_tokens(special)
        ids: list[int] = []
        for index, part in enumerate(pattern.split(text)):
            if index % 2:
                ids.append(literal_ids[part])
                continue
            normalized = normalize("NFC", part) if self._normalizer else part
            prefixed = self._space_prefix == "always" or (self._space_prefix == "first" and first and not index)
            if normalized and prefixed and normalized[0] not in _SPACES:
                normalized = f" {normalized}"
            ids += self._tokenize_words(normalized) if self._needs_split(normalized) else self._tokenize(normalized)
        return ids

    def _needs_split(self, text: str) -> bool:
        return bool(self._split) and not text.isascii()

    def _tokenize_words(self, text: str) -> list[int]:
        words = pretokenizer.split(self._split).findall(text)
        return [token for word in words for token in self._merges.encode(word.encode("utf-8", "surrogatepass"))]

    def _tokenize(self, text: str, special: bool = False) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        if not data:
            return []
        size = len(data) + 8
        buffer = (ctypes.c_int32 * size)()
        count = self._lib.llama_tokenize(self.vocab, data, len(data), buffer, size, False, special)
        if count < 0:
            size = -count
            buffer = (ctypes.c_int32 * size)()
            count = self._lib.llama_tokenize(self.vocab, data, len(data), buffer, size, False, special)
        if count < 0:
            raise RequestError(f"the text is too long to tokenize ({len(data):,} bytes)", "messages")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` adds to the answer, b"" for a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            special = bool(self._ends) and _is_false_control(self._lib.llama_vocab_get_attr(self.vocab, token))
            buffer = ctypes.create_string_buffer(256)
            count = self._lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, special)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = self._lib.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
            piece = self._pieces[token] = buffer.raw[: max(count, 0)]
        return piece

    def _literal_tokens(self, special: bool) -> tuple[re.Pattern[str], dict[str, int]]:
        """Return a pattern of the tokens that are matched in a text before it is split, and their ids."""
        if special not in self._literals:
            mask = _USER_DEFINED | (_CONTROL | _UNKNOWN) * special
            # In files of others, a control bit that libllama adds counts, whatever type the file gives.
            unless = _CONTROL * (not special) if self._foreign else _NORMAL
            attributes = enumerate(self._attributes)
            ids = {self.token_text(token): token for token, bits in attributes if bits & mask and not bits & unless}
            ids |= self._loose_marks if special else {}
            self._literals[special] = _any_of(ids), ids
        return self._literals[special]

    @cached_property
    def _false_control_tokens(self) -> re.Pattern[str] | None:
        """The user-defined tokens that libllama takes for control tokens. None where the file lists no end tokens."""
        if not self._ends:
            return None
        both = _USER_DEFINED | _CONTROL
        texts = [self.token_text(token) for token, bits in enumerate(self._attributes) if bits & both == both]
        return _any_of(texts) if texts else None

    @cached_property
    def _loose_marks(self) -> dict[str, int]:
        """The tokens that only can be marks, although their types say otherwise, by their texts."""
        get_text, get_attributes, vocab = self._lib.llama_vocab_get_text, self._lib.llama_vocab_get_attr, self.vocab
        kind = self._lib.llama_vocab_type(vocab)
        if not self._foreign or kind not in (_SPM, _BPE):  # others cannot tokenize, or are not of chat models
            return {}
        spellings = [get_text(vocab, token) or b"" for token in range(self.n_vocab)]
        readable = None if kind == _BPE else readable_characters(spellings)
        template = self.chat_template or ""
        marks: dict[str, int] = {}
        for token, spelling in enumerate(spellings):
            text = marked_text(spelling)
            if text is None:
                continue
            bits = get_attributes(vocab, token)
            # libllama makes control tokens of some that it knows by their spelling.
            is_text = bool(bits & _NORMAL) or (bool(bits & _UNUSED) and text in template)
            if _is_false_control(bits) or (is_text and not is_word(token, text, self._tokenize, readable)):
                marks[text] = token
        if written := sorted(text for text in marks if text in template):
            _log.warning("%s: these tokens are read as marks, although their types say text: %s", self.path, written)
        return marks

    @cached_property
    def _unparsed_marks(self) -> re.Pattern[str] | None:
        """A pattern of the marks that libllama does not find in a text; None where there are none."""
        marks, get, vocab = self._loose_marks, self._lib.llama_vocab_get_attr, self.vocab
        texts = [text for text, token in marks.items() if not get(vocab, token) & _CONTROL]
        return _any_of(texts) if texts else None

    @cached_property
    def _merges(self) -> pretokenizer.BytePairMerges:
        others = _CONTROL | _USER_DEFINED
        attributes = enumerate(self._attributes)
        ids = {self.piece(token): token for token, bits in attributes if bits & _NORMAL and not bits & others}
        missing = [byte for byte in range(256) if bytes([byte]) not in ids]
        if missing:
            raise ModelFormatError(f"has pocketvlm.split, but no token for the byte {missing[0]:#04x}", self.path)
        return pretokenizer.BytePairMerges(ids)

    @cached_property
    def _attributes(self) -> list[int]:
        """The llama_token_attr bits of every token."""
        get, vocab = self._lib.llama_vocab_get_attr, self.vocab
        return [get(vocab, token) for token in range(self.n_vocab)]

    def _metadata(self, key: str) -> str:
        """Return a value of the file's metadata that is not an array, "" where it is missing."""
        buffer = ctypes.create_string_buffer(4096)
        length = self._lib.llama_model_meta_val_str(self.raw, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""


def _is_false_control(attributes: int) -> bool:
    """Return whether libllama made a token a control token: it keeps the bit of the type that the file gives."""
    return bool(attributes & _CONTROL and attributes & (_NORMAL | _USER_DEFINED))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the texts, longest first, in a group, so that `split` returns them, too."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)") + ")")
