"""tokenizer.json -> GGUF vocabulary, and the proof that libllama tokenizes with it as the original does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from pocketvlm.errors import ModelError, TokenizerError
from pocketvlm.native.llama import Model
from pocketvlm.vision import families
from pocketvlm_converters.checkpoint import Checkpoint
from pocketvlm_converters.corpus import corpus
from pocketvlm_converters.family import PreTokenizer, Value

_FILE = "tokenizer.json"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Splits that many families share. An unknown one is refused: a wrong split answers worse, and nobody notices.
_PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (("ByteLevel", "words"),)),
    PreTokenizer("smollm", (("Digits", "single"), ("ByteLevel", "words"))),
    PreTokenizer("llama-bpe", (("Split", _WORDS, "Isolated"), ("ByteLevel", "bytes")), ignore_merges=True),
    PreTokenizer("smaug-bpe", (("Split", _WORDS, "Isolated"), ("ByteLevel", "bytes"))),
)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary as GGUF has it: `tokens` in the spelling of tokenizer.json, by id.

    `special` maps bos, eos, eot, eom, unknown and padding to ids. `added` are the tokens matched before the text is
    split, spelled as themselves.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    added: tuple[str, ...]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None

    def metadata(self) -> dict[str, Value]:
        found: dict[str, Value] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            "tokenizer.ggml.merges": self.merges,
            **{f"tokenizer.ggml.{name}_token_id": number for name, number in self.special.items()},
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": self.add_eos,
            "tokenizer.ggml.add_space_prefix": False,
        }
        return found | ({"tokenizer.chat_template": self.chat_template} if self.chat_template else {})


def read_vocabulary(checkpoint: Checkpoint, rows: int, extra: Iterable[PreTokenizer] = ()) -> Vocabulary:
    """`rows` is the height of the embedding: ids without a token become unused ones. `extra` comes from the family.

    Raises TokenizerError for anything that libllama cannot reproduce.
    """
    path = checkpoint.path / _FILE
    data = checkpoint.json(_FILE).values
    model = data.get("model") or {}
    _check_model(data, model, path)
    pre = _pre_tokenizer(data.get("pre_tokenizer"), bool(model.get("ignore_merges")), extra, path)
    # Asked of the tokenizers package: it numbers added tokens anew where the file leaves a gap before them.
    reference = _reference(path)
    ids: dict[str, int] = reference.get_vocab(with_added_tokens=True)
    added = reference.get_added_tokens_decoder()
    if len(set(ids.values())) != len(ids):
        raise TokenizerError("two tokens have the same id", path)
    if max(ids.values()) >= rows:
        raise TokenizerError(f"has token id {max(ids.values())}, but the embedding has only {rows} rows", path)
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for text, number in ids.items():
        tokens[number], types[number] = text, int(TokenType.NORMAL)
    for number, token in added.items():
        types[number] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    if len(set(tokens)) != rows:  # libllama aborts the process on this
        raise TokenizerError("has a token spelled like the padding of the vocabulary", path)
    add_bos, add_eos, special = _special(checkpoint, reference, ids, path)
    return Vocabulary(
        pre=pre,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]),
        added=tuple(token.content for token in added.values()),
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(checkpoint),
    )


def check_picture_tokens(checkpoint: Checkpoint, metadata: Mapping[str, Value]) -> None:
    """What the runtime writes around a picture must be single tokens: libmtmd aborts the process where one is not.

    `metadata` is that of the mmproj file. Raises TokenizerError.
    """
    path = checkpoint.path / _FILE
    found = families.find(dict(metadata))
    if found is None:
        raise TokenizerError("the runtime has no layout for this projector", path)
    layout, reference = found[1], _reference(path)
    wanted = (layout.image_token, *layout.control_tokens())
    split = [token for token in wanted if len(reference.encode(token, add_special_tokens=False).ids) != 1]
    if split:
        more = f" and {len(split) - 1} more" if len(split) > 1 else ""
        raise TokenizerError(f"has no token {split[0]!r}{more}, which stands around pictures", path)


def prove(gguf: Path, checkpoint: Path, vocabulary: Vocabulary) -> int:
    """Compare libllama, loading the vocabulary of `gguf`, with tokenizer.json on the whole corpus.

    Special tokens once parsed and once as plain text. Returns the number of comparisons; raises TokenizerError with
    the text, the position and both id lists where they first differ.
    """
    path = checkpoint / _FILE
    reference = _reference(path)
    compared = 0
    try:
        with Model(gguf, vocab_only=True) as model:
            if model.n_vocab != len(vocabulary.tokens):
                raise TokenizerError(f"libllama sees {model.n_vocab} tokens of {len(vocabulary.tokens)}", path)
            for special in (True, False):
                reference.encode_special_tokens = not special
                for text in corpus(vocabulary.added):
                    wanted = reference.encode(text, add_special_tokens=False)
                    found = model.tokenize(text, special=special)
                    if found != wanted.ids:
                        raise TokenizerError(_difference(text, special, wanted, found), path)
                    compared += 1
    except ModelError as error:
        raise TokenizerError(f"libllama cannot load the vocabulary made of it: {error.message}", path) from error
    return compared


def _difference(text: str, special: bool, wanted: Any, found: list[int]) -> str:
    ids: list[int] = wanted.ids
    at = next((i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), min(len(ids), len(found)))
    position = wanted.offsets[at][0] if at < len(ids) else len(text)
    near = slice(max(0, at - 2), at + 6)
    return (
        f"the GGUF vocabulary tokenizes otherwise ({'parsing' if special else 'not parsing'} special tokens) "
        f"at character {position} of {text!r}, before {text[position : position + 20]!r}: "
        f"tokenizer.json gives {ids[near]}, libllama {found[near]} (from token {near.start} on)"
    )


def steps_of(pre_tokenizer: Any) -> tuple[tuple[str, ...], ...]:
    """The `pre_tokenizer` of a tokenizer.json, flattened: one tuple a step, its settings as words."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = str(pre_tokenizer.get("type"))
    if kind == "Sequence":
        return tuple(step for one in pre_tokenizer.get("pretokenizers", ()) for step in steps_of(one))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space", True):
        return ((kind, "words" if pre_tokenizer.get("use_regex", True) else "bytes"),)
    if kind == "Digits":
        return ((kind, "single" if pre_tokenizer.get("individual_digits") else "runs"),)
    if kind == "Split" and "Regex" in pre_tokenizer.get("pattern", {}) and not pre_tokenizer.get("invert"):
        return ((kind, pre_tokenizer["pattern"]["Regex"], str(pre_tokenizer.get("behavior"))),)
    return ((kind, json.dumps(pre_tokenizer, sort_keys=True)),)


def _pre_tokenizer(described: Any, ignore_merges: bool, extra: Iterable[PreTokenizer], path: Path) -> str:
    steps = steps_of(described)
    for known in (*extra, *_PRE_TOKENIZERS):
        if known.steps == steps and known.ignore_merges == ignore_merges:
            return known.name
    shown = json.dumps(described, ensure_ascii=False)
    raise TokenizerError(f"unknown pre_tokenizer (ignore_merges {str(ignore_merges).lower()}): {shown[:500]}", path)


def _check_model(data: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> None:
    if model.get("type", "BPE") != "BPE" or not model.get("vocab") or not model.get("merges"):
        raise TokenizerError(f"model {model.get('type')!r} is not supported; byte-level BPE is", path)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise TokenizerError(f"model.{key} is {model[key]!r}, which libllama does not have", path)
    if data.get("normalizer"):
        raise TokenizerError(f"normalizer {data['normalizer'].get('type')!r} is not supported: libllama has none", path)


def _reference(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TokenizerError("the tokenizers package is missing: pip install 'pocketvlm[convert]'", path) from error
    try:
        reference = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(f"cannot be loaded: {error}", path) from None
    reference.no_truncation()
    reference.no_padding()
    return reference


def _special(
    checkpoint: Checkpoint, reference: Any, ids: Mapping[str, int], path: Path
) -> tuple[bool, bool, dict[str, int]]:
    """Whether beginning and end are added to a text, and the special ids by GGUF's name for them."""
    config = checkpoint.json("tokenizer_config.json", optional=True).values
    generation = checkpoint.json("generation_config.json", optional=True).values
    text_config = checkpoint.config.section("text_config").values

    def token(name: str) -> int | None:
        spelled = config.get(f"{name}_token")
        content = spelled.get("content") if isinstance(spelled, dict) else spelled
        if content is None:
            number = next((s[f"{name}_token_id"] for s in (generation, text_config) if f"{name}_token_id" in s), None)
            return number[0] if isinstance(number, list) else number
        if content not in ids:
            raise TokenizerError(f"{name}_token {content!r} is not in the vocabulary", path)
        return ids[content]

    eos, bos = token("eos"), token("bos")
    if eos is None:
        raise TokenizerError("no eos_token: nothing would end an answer", path)
    stops = generation.get("eos_token_id", text_config.get("eos_token_id"))
    others = [n for n in (stops if isinstance(stops, list) else [stops]) if n is not None and n != eos]
    if len(others) > 2:
        raise TokenizerError(f"generation_config.eos_token_id has {len(others) + 1} ends; GGUF can say three", path)
    # libllama guesses a missing end of turn from the spelling, and takes token 11 for a missing beginning.
    found = {"bos": eos if bos is None else bos, "eos": eos, "eot": (others or [eos])[0]}
    if len(others) > 1:
        found["eom"] = others[1]
    found |= {gguf: n for gguf, name in (("unknown", "unk"), ("padding", "pad")) if (n := token(name)) is not None}

    plain = reference.encode("a", add_special_tokens=False).ids
    full = reference.encode("a", add_special_tokens=True).ids
    add_bos, add_eos = full == [bos, *plain] or full == [bos, *plain, eos], full in ([*plain, eos], [bos, *plain, eos])
    if full != [*[bos] * add_bos, *plain, *[eos] * add_eos]:
        raise TokenizerError(f"its post_processor turns {plain} into {full}; only bos and eos can be added", path)
    return bool(config.get("add_bos_token", add_bos)), bool(config.get("add_eos_token", add_eos)), found


def _chat_template(checkpoint: Checkpoint) -> str | None:
    """Where transformers looks, in its order."""
    template: Any = checkpoint.text("chat_template.jinja")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = template or checkpoint.json(name, optional=True).values.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None
