"""GGUF files of others: marks of other token types, and a normalizer that no key names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf import TokenType
from tokenizers import Tokenizer

from pocketvlm.native.llama import Model
from pocketvlm.native.loose_marks import is_mark, is_word, readable_characters
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens
from pocketvlm.vision.prompt_units import units_of
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.families import find_family
from pocketvlm_converters.tokenizer import Vocabulary, read_vocabulary
from store import Store

from .vocabulary_file import write

LOOSE = [TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED]


def vocabulary_of(folder: Path) -> Vocabulary:
    source = Checkpoint(folder)
    family = find_family(source)
    return read_vocabulary(source, family.language().weights[0].tensor.shape[0], family.pre_tokenizers)


def foreign(vocabulary: Vocabulary, path: Path, marks: tuple[str, ...], kind: TokenType) -> Path:
    """Write the file of another converter, which gives the marks another type."""
    types = [int(kind) if text in marks else old for text, old in zip(vocabulary.tokens, vocabulary.types, strict=True)]
    return write(vocabulary, path, {"tokenizer.ggml.token_type": types}, foreign=True)


def ids_of(model: Model, vocabulary: Vocabulary, *texts: tuple[str, bool]) -> list[int | object]:
    """Tokenize texts, each by its author: the template or a user."""
    control = model.control_tokens(vocabulary.types)
    return list(units_of(model, isolate_control_tokens([TextSpan(*text) for text in texts], control)))


@pytest.mark.parametrize("kind", LOOSE)
@pytest.mark.parametrize(
    ("family", "marks", "before", "after"),
    [
        (
            "gemma3",
            ("<start_of_turn>", "<end_of_turn>"),
            "<start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("qwen2_5_vl", ("<|im_start|>", "<|im_end|>"), "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        ("mistral3", ("[INST]", "[/INST]", "</s>"), "[INST]", "[/INST]"),
    ],
)
def test_marks_of_another_type(
    family: str, marks: tuple[str, ...], before: str, after: str, kind: TokenType, store: Store, tmp_path: Path
) -> None:
    """They are one token each where the template writes them, as in the tokenizer's own file."""
    folder = store.checkpoint(family)
    vocabulary = vocabulary_of(folder)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
        f"{before}Hi.{after}", add_special_tokens=False
    )
    with Model(foreign(vocabulary, tmp_path / "v.gguf", marks, kind), vocab_only=True) as model:
        ids = ids_of(model, vocabulary, (before, True), ("Hi.", False), (after, True))
        assert ids[model.adds_bos :] == expected.ids
        for mark in marks:
            assert model.tokenize(mark, special=True)[-1:] == [vocabulary.tokens.index(mark)]
            if kind != TokenType.USER_DEFINED:  # libllama finds these in every text
                assert vocabulary.tokens.index(mark) not in model.tokenize(f"Hi {mark}", special=False)


def test_the_warning_names_what_the_template_writes(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = vocabulary_of(store.checkpoint("gemma3"))
    marks = ("<start_of_turn>", "<unused0>")
    with (
        caplog.at_level(logging.WARNING),
        Model(foreign(vocabulary, tmp_path / "v.gguf", marks, TokenType.NORMAL), vocab_only=True) as model,
    ):
        ids_of(model, vocabulary, ("x", True))
    assert "['<start_of_turn>']" in caplog.text


def test_our_own_files_are_taken_at_their_word(store: Store, tmp_path: Path) -> None:
    """In the original such a token is not one either."""
    vocabulary = vocabulary_of(store.checkpoint("gemma3"))
    types = list(vocabulary.types)
    types[vocabulary.tokens.index("<start_of_turn>")] = int(TokenType.NORMAL)
    path = write(vocabulary, tmp_path / "v.gguf", {"tokenizer.ggml.token_type": types})
    with Model(path, vocab_only=True) as model:
        assert len(model.tokenize("<start_of_turn>", special=True)) > 1
        assert "<start_of_turn>" not in model.control_tokens(types)


@pytest.mark.parametrize(
    "text", "<|im_end|> <start_of_turn> </s> [/INST] <turn|> <|turn> _<EOT> ]~b] <\uff5cUser\uff5c>".split()
)
def test_spellings_of_marks(text: str) -> None:
    assert is_mark(text)


@pytest.mark.parametrize(
    "text", ["", "<>", "user", "\n", "<<<", "\u2581<b>", "a>", "(x)", "<a\n>", "<" + "x" * 99 + ">"]
)
def test_spellings_of_words(text: str) -> None:
    assert not is_mark(text)


DECOMPOSED = ("cafe\u0301", "A\u030a<|im_end|>e\u0301", "\u1100\u1161", "\u0e33 e\u0301e\u0301", "\u212b")


@pytest.mark.parametrize(
    ("split", "normalizes"),
    [(name, True) for name in ("qwen2", "qwen35", "command-r")] + [(name, False) for name in ("gpt-2", "smollm")],
)
def test_normalizers_that_splits_imply(
    split: str, normalizes: bool, checkpoint: Path, edit: Callable[..., None], tmp_path: Path
) -> None:
    """The reference normalizes a text between marks, and is split by the same name."""
    edit(checkpoint / "tokenizer.json", {"normalizer": {"type": "NFC"} if normalizes else None})
    vocabulary = read_vocabulary(Checkpoint(checkpoint), 704)
    reference = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    path = write(vocabulary, tmp_path / "v.gguf", {"tokenizer.ggml.pre": split}, foreign=True)
    with Model(path, vocab_only=True) as model:
        for text in DECOMPOSED:
            assert ids_of(model, vocabulary, (text, True)) == reference.encode(text, add_special_tokens=False).ids
        composed, decomposed = (model.tokenize(text, special=False) for text in ("caf\u00e9", "cafe\u0301"))
        assert (composed == decomposed) is normalizes


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_our_own_files_name_their_normalizer(
    normalizer: object, checkpoint: Path, edit: Callable[..., None], tmp_path: Path
) -> None:
    edit(checkpoint / "tokenizer.json", {"normalizer": normalizer})
    path = write(read_vocabulary(Checkpoint(checkpoint), 704), tmp_path / "v.gguf", {"tokenizer.ggml.pre": "qwen2"})
    with Model(path, vocab_only=True) as model:
        composed, decomposed = (model.tokenize(text, special=False) for text in ("caf\u00e9", "cafe\u0301"))
        assert (composed == decomposed) is (normalizer is not None)


def test_a_vocabulary_that_cannot_read_all_characters() -> None:
    """libllama would abort the process, so that nothing is asked about such a text."""
    asked: list[str] = []

    def tokenize(text: str) -> list[int]:
        asked.append(text)
        return [7]

    spellings = [b"a", b"<", b">", "\u2581".encode(), b"</a>"]
    readable = readable_characters(spellings)
    assert readable is not None
    assert not is_word(7, "</a>", tokenize, readable) and not asked, "there is no /"
    assert is_word(7, "<a>", tokenize, readable) and asked
    assert readable_characters([*spellings, b"<0x0A>"]) is None


def test_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_uint32("llama.vocab_size", 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with Model(tmp_path / "v.gguf", vocab_only=True) as model:
        assert model.control_tokens([]) == {}
