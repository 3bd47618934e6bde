"""Convert tokenizer.json to a GGUF vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf import TokenType

from pocketvlm.errors import CheckpointError, TokenizerError, quoted
from pocketvlm.vision import families
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.reference_tokenizer import FILE, encode, load_reference
from pocketvlm_converters.tokenizer.byte_bpe import read_byte_bpe
from pocketvlm_converters.tokenizer.chat_template import chat_template
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer
from pocketvlm_converters.tokenizer.sentencepiece import SPACE, read_sentencepiece, type_of
from pocketvlm_converters.tokenizer.special import check_decoder, infill, special
from pocketvlm_converters.weights import Value

_UNUSED = int(TokenType.UNUSED)


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as GGUF has it.

    - `model`: the keys of the tokenizer's kind.
    - `tokens`, `types`: spelling, as in tokenizer.json, and TokenType, by id.
    - `added`: the tokens that are matched before the text is split.
    - `special`: ids by role: bos, eos, eot, eom, unknown, padding and others. `ends`: all ids that end an answer.
    - `merged`: added tokens that stand for spaces. Here only merges make them; otherwise libllama would write them
      literally.
    - `lost`: added tokens without a row in the embedding. They are plain text here, and an error in the reference.
    - `notes`: remarks for the user.
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
        metadata: dict[str, Value] = {
            **self.model,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            **{f"tokenizer.ggml.{name}_token_id": number for name, number in self.special.items()},
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": self.add_eos,
            # A string, because libllama's API does not return arrays.
            "pocketvlm.end_token_ids": " ".join(map(str, self.ends)),
        }
        return metadata | ({"tokenizer.chat_template": self.chat_template} if self.chat_template else {})


def read_vocabulary(checkpoint: Checkpoint, rows: int, extra: Iterable[PreTokenizer] = ()) -> Vocabulary:
    """Read the vocabulary of `checkpoint`. Raises TokenizerError for anything that the runtime cannot reproduce.

    `rows` is the number of rows of the embedding; ids without a token become unused tokens. `extra` are the splits that
    only the family has.
    """
    path = checkpoint.path / FILE
    data = checkpoint.json(FILE).values
    model = data.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("model is missing", path)
    if model.get("type", "BPE") != "BPE" or not model.get("vocab") or not model.get("merges"):
        raise TokenizerError(
            f"model {quoted(model.get('type'))} is not supported; only BPE is, with vocab and merges", path
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise TokenizerError(f"model.{key} is {quoted(model[key])}, which libllama does not have", path)
    # The tokenizers package checks the types of everything that is read below. It also gives the ids, because it
    # renumbers added tokens if the file leaves a gap before them.
    reference = load_reference(path)
    ids: dict[str, int] = reference.get_vocab(with_added_tokens=True)
    added = reference.get_added_tokens_decoder()
    check_decoder(checkpoint, added, path)
    lost = tuple(token.content for number, token in sorted(added.items()) if number >= rows)
    ids = {text: number for text, number in ids.items() if text not in lost}
    added = {number: token for number, token in added.items() if number < rows}
    if cut := next((text for text in ids if "\0" in text), None):
        raise TokenizerError(f"token {quoted(cut)} contains NUL, where libllama would cut it off", path)
    if len(set(ids.values())) != len(ids):
        raise TokenizerError("has two tokens with the same id", path)
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
    if len(set(tokens)) != rows:  # libllama would abort the process
        raise TokenizerError("has a token that is spelled like the [PAD<id>] of unused ids", path)
    template, template_notes = chat_template(checkpoint)
    special_tokens = special(checkpoint, reference, ids, template, path)
    return Vocabulary(
        model=read_sentencepiece(data, model, tuple(tokens), path)
        if characters
        else read_byte_bpe(data, model, extra, path),
        tokens=tuple(tokens),
        types=tuple(types),
        added=matched,
        special=special_tokens.ids | infill(ids, types),
        ends=special_tokens.ends,
        add_bos=special_tokens.add_bos,
        add_eos=special_tokens.add_eos,
        chat_template=template,
        merged=merged,
        lost=lost,
        notes=(*_notes(ids, types, merged, lost), *template_notes, *special_tokens.notes),
    )


def _notes(ids: Mapping[str, int], types: list[int], merged: tuple[str, ...], lost: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if lost:
        notes.append(f"{', '.join(lost)}: converted to plain text, because the embedding has no row for it")
    if merged:
        notes.append(f"tokens write spaces as {SPACE}; a text that contains {merged[0]} may be tokenized differently")
    ordinary = [token for token in _ENDS if token in ids and types[ids[token]] == TokenType.NORMAL]
    if ordinary:
        notes.append(
            f"{', '.join(ordinary)} is an ordinary token, as in the original; llama.cpp's own programs treat it as an "
            "end of text because of its spelling"
        )
    return tuple(notes)


# Spellings that libllama treats as control tokens that end a text, whatever their type.
_ENDS = (
    "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip


def check_picture_tokens(checkpoint: Checkpoint, metadata: Mapping[str, Value], vocabulary: Vocabulary) -> None:
    """Raise TokenizerError if what the runtime writes around a picture is not a single token each.

    libmtmd would abort the process. `metadata` is that of the mmproj file. Raises CheckpointError for sizes of pictures
    that the runtime does not support.
    """
    path = checkpoint.path / FILE
    try:
        match = families.find(dict(metadata))
    except ValueError as error:
        raise CheckpointError(f"the runtime does not support its pictures: {error}", checkpoint.path) from None
    if match is None:
        raise TokenizerError("the runtime does not support this projector", path)
    layout, reference = match[1], load_reference(path)
    needed = (layout.image_token, *layout.control_tokens())
    missing = [token for token in needed if token in vocabulary.lost or len(encode(reference, token, path)) != 1]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TokenizerError(f"has no token {quoted(missing[0])}{more}, which the runtime writes around pictures", path)
