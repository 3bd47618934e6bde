"""BPE over characters with a fallback to bytes becomes a vocabulary that libllama reads and writes alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pocketvlm.errors import TokenizerError
from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens
from pocketvlm.vision.prompt_units import units_of
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.tokenizer import Vocabulary, prove, read_vocabulary
from pocketvlm_converters.tokenizer.corpus import TEXTS

from .vocabulary_file import write

ROWS = 1600
MARK = "\u2581"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
# As in vocabularies that mark up HTML and runs of white space; `</s>` is not an end of anything.
DEFINED = ("\n\n", "\n\n\n", "\t\t", MARK * 2, MARK * 3, "<b>", "</s>")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
PREPEND = {"type": "Prepend", "prepend": MARK}
METASPACE = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first", "split": False}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def trained() -> dict[str, Any]:
    """A tokenizer.json with every split of every token among its merges, as SentencePiece's conversion lists them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(MARK, "merged_with_next")
    texts = [text for text in TEXTS if len(text.split()) > 4]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        limit_alphabet=300,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    data = json.loads(tokenizer.to_str())
    # libllama would join "<unk" and ">", in a text that somebody typed.
    learned = [t for t in data["model"]["vocab"] if t not in SPECIAL and (len(t) == 1 or not set(t) & set("<>"))]
    learned = [token for token in learned if "\0" not in token]  # libllama would cut it there
    single, longer = [t for t in learned if len(t) == 1], [t for t in learned if len(t) > 1]
    single += [character for character in ("\n", "\t") if character not in single]
    runs = sorted((token for token in DEFINED if len(set(token)) == 1), key=len, reverse=True)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *DEFINED, *single]
    tokens += [token for token in longer if token not in tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    data["model"]["vocab"] = vocabulary
    data["model"]["merges"] = [
        [token[:at], token[at:]]
        for token in (*runs, *longer)
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] = [
        {"id": vocabulary[token], "content": token, "special": token in SPECIAL, **flags}
        for token in (*SPECIAL, *DEFINED)
    ]
    data["pre_tokenizer"] = SPLIT
    data["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
    }
    return data


@pytest.fixture(scope="module")
def made() -> str:
    return json.dumps(trained())


@pytest.fixture
def data(made: str) -> dict[str, Any]:
    return dict(json.loads(made))


@pytest.fixture
def folder(checkpoint: Path) -> Path:
    (checkpoint / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"})
    )
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    return checkpoint


def read(folder: Path, data: dict[str, Any]) -> Vocabulary:
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return read_vocabulary(Checkpoint(folder), ROWS)


def prefixed(data: dict[str, Any], where: str) -> None:
    """Change a tokenizer.json: a space is put before texts, as older models or libraries have it."""
    old = where == "normalizer"
    data["normalizer"] = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]} if old else None
    data["pre_tokenizer"] = None if old else METASPACE | {"prepend_scheme": where}
    if where != "never":
        data["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})


@pytest.mark.parametrize("prefix", [None, "normalizer", "always", "first", "never"])
def test_reads_and_writes_as_the_original(
    folder: Path, data: dict[str, Any], tmp_path: Path, prefix: str | None
) -> None:
    if prefix:
        prefixed(data, prefix)
    vocabulary = read(folder, data)
    assert vocabulary.model["tokenizer.ggml.model"] == "llama"
    assert vocabulary.model["tokenizer.ggml.add_space_prefix"] is (prefix == "normalizer")
    assert vocabulary.add_bos and not vocabulary.add_eos and vocabulary.ends == (1, 5)
    path = write(vocabulary, tmp_path / "vocabulary.gguf")
    assert prove(path, folder, vocabulary) > 600
    reference, rng = Tokenizer.from_file(str(folder / "tokenizer.json")), Random(1)
    reference.encode_special_tokens = True
    alphabet = sorted(set("".join(TEXTS)) - {MARK})
    pieces = [*alphabet, *"  \n\nabcdefghijklmnopqrstuvwxyz", *(t for t in DEFINED if MARK not in t), *SPECIAL, "\0"]
    with Model(path, vocab_only=True) as model:
        for _ in range(1000):
            text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 40)))
            ids = model.tokenize(text, special=False, first=True)
            assert ids == reference.encode(text, add_special_tokens=False).ids, text
            assert b"".join(map(model.piece, ids)).decode() == text or prefix not in (None, "never")


@pytest.mark.parametrize("prefix", ["normalizer", "always", "first"])
def test_a_space_before_what_stands_behind_a_control_token(
    folder: Path, data: dict[str, Any], tmp_path: Path, prefix: str
) -> None:
    prefixed(data, prefix)
    vocabulary = read(folder, data)
    text = "Two<start_of_turn>red circles<end_of_turn> and<bos>one"
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    spans = isolate_control_tokens([TextSpan(text, special=True)], SPECIAL)
    with Model(write(vocabulary, tmp_path / "vocabulary.gguf"), vocab_only=True) as model:
        assert units_of(model, spans)[1:] == wanted
        unlike = [prefix == "first", False]
        for first, is_unlike in zip((False, True), unlike, strict=True):
            found = model.tokenize("red", special=False, first=first)
            assert (b"".join(map(model.piece, found)) == b"red") is is_unlike


def test_types_and_scores(folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    vocabulary = read(folder, data)
    kinds = {token: TokenType(kind) for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)}
    assert [kinds[token] for token in SPECIAL] == [
        *[TokenType.CONTROL] * 3,
        TokenType.UNKNOWN,
        *[TokenType.CONTROL] * 2,
    ]
    assert {kinds[f"<0x{byte:02X}>"] for byte in range(256)} == {TokenType.BYTE}
    assert kinds["\n\n"] is kinds["<b>"] is kinds["</s>"] is TokenType.USER_DEFINED
    assert kinds[MARK * 2] is TokenType.NORMAL, "a user-defined one would be written as it is spelled"
    assert vocabulary.merged == (MARK * 2, MARK * 3) and MARK * 2 in vocabulary.notes[0]
    scores = vocabulary.model["tokenizer.ggml.scores"]
    assert isinstance(scores, tuple)
    ranked = sorted(range(len(scores)), key=lambda number: -scores[number])
    first, *_ = data["model"]["merges"]
    assert vocabulary.tokens[ranked[0]] == "".join(first)
    with Model(write(vocabulary, tmp_path / "vocabulary.gguf"), vocab_only=True) as model:
        assert (model.bos, model.eos, model.adds_bos) == (2, 1, True)
        assert [number for number in range(len(vocabulary.tokens)) if model.is_end(number)] == [1, 5]
        assert model.piece(vocabulary.tokens.index("</s>")) == b"</s>"


def test_ways_to_join_that_no_merge_has(folder: Path, data: dict[str, Any]) -> None:
    """libllama joins any two tokens that make a third: what the merges leave out, and control tokens that are typed."""
    merges = data["model"]["merges"]
    data["model"]["merges"] = [merge for merge in merges if merge != merges[-1]]
    with pytest.raises(TokenizerError, match="would join"):
        read(folder, data)
    data["model"]["merges"] = merges
    data["model"]["vocab"]["<unk"] = len(data["model"]["vocab"])
    with pytest.raises(TokenizerError, match="would join '<unk' and '>'"):
        read(folder, data)
    data["model"]["vocab"]["\0"] = data["model"]["vocab"].pop("<unk")
    with pytest.raises(TokenizerError, match="NUL"):
        read(folder, data)


def test_proof_fails_where_merges_are_in_another_order(folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    vocabulary = read(folder, data)
    path = write(vocabulary, tmp_path / "vocabulary.gguf")
    data["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="tokenizes differently"):
        prove(path, folder, vocabulary)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer"),
        ({"normalizer": None}, "normalizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE, PREPEND]}}, "normalizer"),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"split": True}}, "splits words"),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"replacement": "_"}}, "splits words"),
        ({"pre_tokenizer": METASPACE}, "pre_tokenizer"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"String": "a"}}}, "pre_tokenizer"),
    ],
)
def test_what_libllama_cannot_do_is_refused(
    folder: Path, data: dict[str, Any], changes: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(TokenizerError, match=wanted):
        read(folder, data | changes)


def test_missing_bytes_and_skipped_merges(folder: Path, data: dict[str, Any]) -> None:
    """libllama would end the process where it looks for the byte."""
    vocabulary = data["model"]["vocab"]
    vocabulary["<0xff>"] = vocabulary.pop("<0xFF>")
    with pytest.raises(TokenizerError, match="no token <0xFF>"):
        read(folder, data)
    vocabulary["<0xFF>"] = vocabulary.pop("<0xff>")
    data["model"]["ignore_merges"] = True
    with pytest.raises(TokenizerError, match="ignore_merges"):
        read(folder, data)


REAL = os.environ.get("POCKETVLM_TOKENIZERS", "")


@pytest.mark.skipif(not REAL, reason="POCKETVLM_TOKENIZERS names no folder with tokenizers of real models")
def test_real_vocabularies(checkpoint: Path, tmp_path: Path) -> None:
    """Each folder below it holds the tokenizer.json of a model, and tokenizer_config.json where it has one."""
    folders = sorted(path.parent for path in Path(REAL).rglob("tokenizer.json"))
    assert folders
    for folder in folders:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (checkpoint / name).write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
        vocabulary = read_vocabulary(Checkpoint(checkpoint), 1 << 18 | 1 << 10)
        assert prove(write(vocabulary, tmp_path / "vocabulary.gguf"), checkpoint, vocabulary) > 30_000, folder
