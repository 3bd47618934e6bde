"""Tiny random checkpoints, made with transformers, and the ways to spoil them."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from iota.tokenizer import save_processor, train_tokenizer

TILE, PATCH, SHUFFLE = 32, 4, 2
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> Callable[..., Any]:
    """A random model; every tensor is told apart from every other, norms and biases too."""

    def make(kind: str = "idefics3", tied: bool = True, vision: dict[str, Any] | None = None, **text: Any) -> Any:
        classes = {
            "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
            "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
        }
        text_config = {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": tokenizer.get_vocab_size() + 9,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": tied,
        }
        vision_config = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
        }
        config_class, model_class = classes[kind]
        config = config_class(
            vision_config=vision_config | (vision or {}),
            text_config=text_config | text,
            scale_factor=SHUFFLE,
            image_token_id=tokenizer.token_to_id("<image>"),
            tie_word_embeddings=tied,
        )
        torch.manual_seed(0)
        model = model_class(config).eval()
        model.generation_config.eos_token_id = tokenizer.token_to_id("<end_of_utterance>")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
        return model

    return make


@pytest.fixture(scope="session")
def save(tokenizer: Tokenizer) -> Callable[..., None]:
    def save(model: Any, folder: Path, **options: Any) -> None:
        model.save_pretrained(folder, **options)
        save_processor(tokenizer, folder, TILE, 2 * TILE, (TILE // PATCH // SHUFFLE) ** 2)

    return save


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save: Any) -> Path:
    """A sound checkpoint of float32 weights in one file. Do not write to it."""
    folder = tmp_path_factory.mktemp("pristine") / "checkpoint"
    save(make_model(), folder)
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


@pytest.fixture
def edit() -> Callable[..., None]:
    """Change keys of a JSON file: `edit(path, {"text_config.hidden_act": "gelu"})`; None removes the key."""

    def edit(path: Path, changes: dict[str, Any]) -> None:
        data = json.loads(path.read_text())
        for key, value in changes.items():
            *parents, last = key.split(".")
            at = data
            for parent in parents:
                at = at[parent]
            if value is None:
                at.pop(last)
            else:
                at[last] = value
        path.write_text(json.dumps(data))

    return edit


@pytest.fixture
def file_limit() -> Callable[[], AbstractContextManager[Callable[[int], None]]]:
    """Writing beyond a size fails with an OSError, here and in children, as on a full disk.

    Within the `with` only: a log that pytest writes must not meet the limit.
    """

    @contextmanager
    def limits() -> Iterator[Callable[[int], None]]:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    return limits
