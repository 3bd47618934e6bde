"""A tiny checkpoint, and the ways to spoil it."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tiny import smolvlm


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return smolvlm.tokenizer()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    def make(kind: str = "idefics3", **changes: Any) -> Any:
        return smolvlm.model(kind, **changes)

    return make


@pytest.fixture(scope="session")
def save() -> Callable[..., None]:
    return smolvlm.save


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
