"""Which tokens end an answer: those of all files, and the one with which the chat template closes an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.engine.loading.closing_token import closing_token
from pocketvlm.errors import TokenizerError
from pocketvlm.native.llama import Model
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.tokenizer import Vocabulary, read_vocabulary

from .vocabulary_file import write

BOS, EOU, IMAGE = 1, 3, 5  # <|im_start|>, <end_of_utterance>, <image>
UNMARKED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CLOSED = "{% for m in messages %}{{ m.role }}: {{ m.content }}@\n{% endfor %}"
FIRST = UNMARKED.replace("{{ m.role }}:", "@{{ m.role }}:")  # as where a turn ends with the mark of the next


def read(folder: Path) -> Vocabulary:
    return read_vocabulary(Checkpoint(folder), 704)


@pytest.fixture
def folder(checkpoint: Path) -> Path:
    """A checkpoint whose tokenizer ends texts with <|im_end|>, and with a template without marks."""
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    config |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    (checkpoint / "chat_template.jinja").write_text(UNMARKED)
    return checkpoint


@pytest.mark.parametrize(
    ("generation", "top", "text", "ends"),
    [
        ({"eos_token_id": [2, 3]}, None, None, (2, 3)),
        (None, [2, 3], None, (2, 3)),
        (None, None, [2, 3], (2, 3)),
        ({"eos_token_id": 2}, [2, 3], None, (2, 3)),
        ({}, [2, 3], None, (2, 3)),
        ({"eos_token_id": None}, 3, 2, (2, 3)),
        ({"eos_token_id": 3}, [2, 4], [3, 2], (2, 3, 4)),
        ({"eos_token_id": [100, 3]}, 2, None, (2, 100, 3)),
        (None, None, None, (2,)),
        # What a class of configurations has by default, in another vocabulary.
        ({"eos_token_id": 3}, 100, 50256, (2, 3)),
        ({"eos_token_id": 3}, BOS, 0, (2, 3)),
    ],
)
def test_the_ends_of_all_files(generation: Any, top: Any, text: Any, ends: tuple[int, ...], folder: Path) -> None:
    path, config = folder / "config.json", json.loads((folder / "config.json").read_text())
    path.write_text(json.dumps({**config, "eos_token_id": top, "text_config": {"eos_token_id": text}}))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    vocabulary = read(folder)
    assert set(vocabulary.ends) == set(ends) and vocabulary.ends[0] == 2
    assert not any("also end" in note for note in vocabulary.notes)


@pytest.mark.parametrize("place", ["generation", "top", "text"])
def test_an_end_that_is_not_in_the_vocabulary(place: str, folder: Path, edit: Callable[..., None]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9999} if place == "generation" else {}))
    edit(
        folder / "config.json", {"text_config.eos_token_id": 9999, **({"eos_token_id": 9999} if place == "top" else {})}
    )
    with pytest.raises(TokenizerError, match="eos_token_id 9999 is not in the vocabulary"):
        read(folder)


@pytest.mark.parametrize("template", [CLOSED, FIRST, CLOSED.replace("}}@", "}}\n@"), "{{ bos_token }}" + CLOSED])
def test_the_mark_of_the_template(template: str, folder: Path, tmp_path: Path) -> None:
    """In the converted file, and where a file of others does not name it."""
    (folder / "chat_template.jinja").write_text(template.replace("@", "<end_of_utterance>"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    vocabulary = read(folder)
    assert vocabulary.ends == (2, EOU) and vocabulary.special["eot"] == EOU
    assert any("also end at <end_of_utterance>" in note for note in vocabulary.notes)
    path = write(vocabulary, tmp_path / "v.gguf", {"pocketvlm.end_token_ids": "2"})
    with Model(path, vocab_only=True) as model:
        assert not model.is_end(EOU)
        assert closing_token(model) == EOU
        model.end_at(EOU)
        assert model.is_end(EOU) and model.is_end(2) and not model.is_end(IMAGE)


@pytest.mark.parametrize(
    "template",
    [
        UNMARKED,
        CLOSED.replace("@", " the end @"),  # not at once
        CLOSED.replace("@", "<|im_end|>").replace("m.content", "'x'"),  # an answer that is not written
        CLOSED.replace("@", "<|im_start|>"),  # a beginning
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_without_such_a_mark(template: str, folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(template.replace("@", "<end_of_utterance>"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    vocabulary = read(folder)
    assert vocabulary.ends == (2,) and vocabulary.notes == ()
    with Model(write(vocabulary, tmp_path / "v.gguf"), vocab_only=True) as model:
        assert closing_token(model) is None
