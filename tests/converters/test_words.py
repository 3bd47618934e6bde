"""A split of words that libllama only approximates: the runtime's own, against the tokenizers package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pocketvlm.errors import ModelFormatError, TokenizerError
from pocketvlm.native import pretokenizer
from pocketvlm.native.llama import Model
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.families.mistral3 import Mistral3
from pocketvlm_converters.tokenizer import Vocabulary, prove, read_vocabulary
from pocketvlm_converters.tokenizer.corpus import TEXTS, corpus

from .vocabulary_file import write

((_, WORDS, _), _) = Mistral3.pre_tokenizers[0].steps
CONTROL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
LEARNT = 3000  # enough for words of every script in the corpus


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """As converted from a tiktoken vocabulary: control tokens first, then bytes, then every way to part a token."""
    trained = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained.pre_tokenizer = steps
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=LEARNT, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*TEXTS] * 3, trainer)
    texts = sorted(trained.get_vocab(), key=lambda text: (len(text) > 1, trained.token_to_id(text)))
    ids = {text: number for number, text in enumerate((*CONTROL, *texts))}
    parted = ((ids[text], text[:at], text[at:]) for text in texts for at in range(1, len(text)))
    order = sorted((made, ids[one], ids[two], one, two) for made, one, two in parted if one in ids and two in ids)
    made = Tokenizer(models.BPE(ids, [merge[-2:] for merge in order], ignore_merges=True))
    made.pre_tokenizer = steps
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return made


@pytest.fixture
def folder(checkpoint: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    return checkpoint


def read(folder: Path) -> Vocabulary:
    return read_vocabulary(Checkpoint(folder), LEARNT + 100, Mistral3.pre_tokenizers)


def test_split_is_the_reference() -> None:
    for text in corpus(CONTROL):
        wanted = [
            text[first:last]
            for _, (first, last) in pre_tokenizers.Split(Regex(WORDS), "isolated").pre_tokenize_str(text)
        ]
        assert pretokenizer.split("tekken").findall(text) == wanted


def test_proven(folder: Path, tmp_path: Path) -> None:
    vocabulary = read(folder)
    assert vocabulary.model["tokenizer.ggml.pre"] == vocabulary.model["pocketvlm.split"] == "tekken"
    assert prove(write(vocabulary, tmp_path / "vocabulary.gguf"), folder, vocabulary) > 2500


def test_libllama_alone_is_not(folder: Path, tmp_path: Path) -> None:
    vocabulary = read(folder)
    path = write(vocabulary, tmp_path / "vocabulary.gguf", {"pocketvlm.split": ""})
    with pytest.raises(TokenizerError, match="tokenizes differently"):
        prove(path, folder, vocabulary)


def test_merges_of_any_bytes(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Words that are no tokens; long ones take no more than a moment."""
    vocabulary = read(folder)
    rng = Random(0)
    with Model(write(vocabulary, tmp_path / "vocabulary.gguf"), vocab_only=True) as model:
        for text in (
            "é" * 20000,
            "ab" * 9000 + "é",
            "字a" * 5000,
            *("".join(rng.choices("aéßбऩि字", k=30)) for _ in range(300)),
        ):
            assert model.tokenize(text, special=False) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda merges: merges.pop(),
        lambda merges: merges.insert(0, merges.pop(1)),
        lambda merges: merges.append(merges[-1]),
    ],
    ids=["one less", "another order", "one twice"],
)
def test_other_merges_are_refused(change: Callable[[list[Any]], Any], folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data["model"]["merges"])
    path.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="not those of a tiktoken vocabulary"):
        read(folder)


def test_an_unknown_split(folder: Path, tmp_path: Path) -> None:
    path = write(read(folder), tmp_path / "vocabulary.gguf", {"pocketvlm.split": "other"})
    with pytest.raises(ModelFormatError, match="other"):
        Model(path, vocab_only=True)


def test_a_byte_without_a_token(folder: Path, tmp_path: Path) -> None:
    vocabulary = read(folder)
    tokens = ["none" if token == "Ã" else token for token in vocabulary.tokens]  # 0xc3, which begins an é
    path = write(vocabulary, tmp_path / "vocabulary.gguf", {"tokenizer.ggml.tokens": tokens})
    with (
        Model(path, vocab_only=True) as model,
        pytest.raises(ModelFormatError, match=r"vocabulary\.gguf: has pocketvlm.split, but no token for the byte 0xc3"),
    ):
        model.tokenize("àé", special=False)


def test_control_tokens_that_a_user_wrote_stay_text(folder: Path, tmp_path: Path) -> None:
    vocabulary = read(folder)
    assert vocabulary.types[3] == TokenType.CONTROL
    with Model(write(vocabulary, tmp_path / "vocabulary.gguf"), vocab_only=True) as model:
        assert model.tokenize("é[INST]é", special=True)[1] == 3
        assert 3 not in model.tokenize("é[INST]é", special=False)
