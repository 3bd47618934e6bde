"""tokenizer.json -> GGUF vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from pocketvlm.errors import CheckpointError, TokenizerError
from pocketvlm.vision import families
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.reference_tokenizer import FILE, load_reference
from pocketvlm_converters.tokenizer.byte_bpe import read_byte_bpe
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer
from pocketvlm_converters.tokenizer.sentencepiece import SPACE, read_sentencepiece, type_of
from pocketvlm_converters.tokenizer.special import chat_template, check_decoder, infill, special
from pocketvlm_converters.weights import Value

_UNUSED = int(TokenType.UNUSED)


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as GGUF has it: `tokens` in the spelling of tokenizer.json, by id.

    `model` holds the keys of the tokenizer's own kind. `special` maps bos, eos, eot, eom, unknown, padding and the
    like to ids; `ends` are all ids that end an answer. `added` are the tokens matched before the text is split,
    spelled as themselves. `merged` are added ones that only merges make here: they stand for spaces, and libllama would
    write them out otherwise. `lost` are added ones without a row in the embedding: plain text here, and an error in the
    reference. `notes` say what a user should know.
    """

    model: Mapping[str, Value]
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    added: tuple[str, ...]
    special: Mapping[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    merged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Value]:
        found: dict[str, Value] = {
            **self.model,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            **{f"tokenizer.ggml.{name}_token_id": number for name, number in self.special.items()},
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": self.add_eos,
            # Text, because libllama hands out no arrays.
            "pocketvlm.end_token_ids": " ".join(map(str, self.ends)),
        }
        return found | ({"tokenizer.chat_template": self.chat_template} if self.chat_template else {})


def read_vocabulary(checkpoint: Checkpoint, rows: int, extra: Iterable[PreTokenizer] = ()) -> Vocabulary:
    """`rows` is the height of the embedding: ids without a token become unused ones. `extra` comes from the family.

    Raises TokenizerError for anything that the runtime cannot reproduce.
    """
    path = checkpoint.path / FILE
    data = checkpoint.json(FILE).values
    model = data.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("model is missing", path)
    if model.get("type", "BPE") != "BPE" or not model.get("vocab") or not model.get("merges"):
        raise TokenizerError(f"model {model.get('type')!r} is not supported; BPE is, over bytes or characters", path)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise TokenizerError(f"model.{key} is {model[key]!r}, which libllama does not have", path)
    # The package checks the types of all that is read below. It is asked for ids: it numbers added tokens anew where
    # the file leaves a gap before them.
    reference = load_reference(path)
    ids: dict[str, int] = reference.get_vocab(with_added_tokens=True)
    added = reference.get_added_tokens_decoder()
    check_decoder(checkpoint, added, path)
    lost = tuple(token.content for number, token in sorted(added.items()) if number >= rows)
    ids = {text: number for text, number in ids.items() if text not in lost}
    added = {number: token for number, token in added.items() if number < rows}
    if cut := next((text for text in ids if "\0" in text), None):
        raise TokenizerError(f"token {cut!r} holds a NUL, at which libllama cuts it", path)
    if len(set(ids.values())) != len(ids):
        raise TokenizerError("two tokens have the same id", path)
    if max(ids.values()) >= rows:
        raise TokenizerError(f"has token id {max(ids.values())}, but the embedding has only {rows} rows", path)
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [_UNUSED] * rows
    characters = bool(model.get("byte_fallback"))
    for text, number in ids.items():
        tokens[number] = text
        types[number] = type_of(text, model.get("unk_token")) if characters else int(TokenType.NORMAL)
    merged = tuple(token.content for token in added.values() if characters and not token.content.strip(SPACE))
    matched = tuple(token.content for token in added.values() if token.content not in merged)
    for number, token in added.items():
        if types[number] != TokenType.UNKNOWN and token.content not in merged:
            types[number] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    if len(set(tokens)) != rows:  # libllama aborts the process on this
        raise TokenizerError("has a token spelled like the padding of the vocabulary", path)
    found = special(checkpoint, reference, ids, path)
    return Vocabulary(
        model=read_sentencepiece(data, model, tuple(tokens), path)
        if characters
        else read_byte_bpe(data, model, extra, path),
        tokens=tuple(tokens),
        types=tuple(types),
        added=matched,
        special=found.ids | infill(ids, types),
        ends=found.ends,
        add_bos=found.add_bos,
        add_eos=found.add_eos,
        chat_template=chat_template(checkpoint),
        merged=merged,
        lost=lost,
        notes=_notes(ids, types, merged, lost),
    )


def _notes(ids: Mapping[str, int], types: list[int], merged: tuple[str, ...], lost: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if lost:
        notes.append(f"{', '.join(lost)}: no token here, because the embedding has no row for it")
    if merged:
        notes.append(f"tokens write spaces as {SPACE}: a text that holds {merged[0]} itself may be read otherwise")
    ordinary = [token for token in _ENDS if token in ids and types[ids[token]] == TokenType.NORMAL]
    if ordinary:
        notes.append(
            f"{', '.join(ordinary)} is an ordinary token, as in the original; llama.cpp's own programs take it for an "
            "end of text by its spelling"
        )
    return tuple(notes)


# Spellings that libllama makes control tokens and ends, whatever their type.
_ENDS = (
    "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip


def check_picture_tokens(checkpoint: Checkpoint, metadata: Mapping[str, Value], vocabulary: Vocabulary) -> None:
    """What the runtime writes around a picture must be single tokens: libmtmd aborts the process where one is not.

    `metadata` is that of the mmproj file. Raises TokenizerError, CheckpointError for sizes that the runtime refuses.
    """
    path = checkpoint.path / FILE
    try:
        found = families.find(dict(metadata))
    except ValueError as error:
        raise CheckpointError(f"the runtime takes no such pictures: {error}", checkpoint.path) from None
    if found is None:
        raise TokenizerError("the runtime has no layout for this projector", path)
    layout, reference = found[1], load_reference(path)
    wanted = (layout.image_token, *layout.control_tokens())
    split = [token for token in wanted if token in vocabulary.lost or len(_ids(reference, token)) != 1]
    if split:
        more = f" and {len(split) - 1} more" if len(split) > 1 else ""
        raise TokenizerError(f"has no token {split[0]!r}{more}, which stands around pictures", path)


def _ids(reference: Any, text: str) -> list[int]:
    ids: list[int] = reference.encode(text, add_special_tokens=False).ids
    return ids
