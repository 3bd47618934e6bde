"""Messages name options as Python does, and the command line shows its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketvlm.system.option_names import flag_of, use_flags, with_flags

ROOT = Path(__file__).parents[2]
# Folders whose messages only the command line and operators of a server see.
COMMANDS = ("pocketvlm/cli", "pocketvlm/server", "pocketvlm/batch", "pocketvlm/plan", "pocketvlm_converters/cli")
OF_OTHERS = re.compile(
    r"`?pocketvlm \w+ |cmake |--target install|curl |pip install |^--offline: "
)  # of commands, or --offline reports


@pytest.fixture
def flags() -> Iterator[None]:
    use_flags({"imatrix": "--imatrix", "max_pixels": "--max-pixels", "context_size": "--ctx-size", "force": "--force"})
    yield
    use_flags({})


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ('use imatrix="auto" or a file', "use --imatrix auto or a file"),
        ("raise the limit with max_pixels=", "raise the limit with --max-pixels"),
        ("already exists; force=True replaces a bundle", "already exists; --force replaces a bundle"),
        ("choose one (context_size=512)", "choose one (--ctx-size 512)"),
        ("unknown=1 and model=", "unknown=1 and model="),
        ("folder/force=True.png: no such file", "folder/force=True.png: no such file"),
    ],
)
@pytest.mark.usefixtures("flags")
def test_keywords_become_options(message: str, shown: str) -> None:
    assert with_flags(message) == shown


@pytest.mark.usefixtures("flags")
def test_without_a_command_nothing_changes() -> None:
    assert (flag_of("context_size"), flag_of("seed")) == ("--ctx-size", "seed")
    use_flags({})
    assert with_flags("force=True replaces it") == "force=True replaces it"
    assert with_flags("keep_unproven=True keeps it", ("keep_unproven",)) == "--keep-unproven keeps it"


def texts(path: Path) -> Iterator[str]:
    """The texts of a module without docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_python_reads_of_keywords() -> None:
    """A text that is an option alone is its name for the command line; one with spaces is a message."""
    wrong = []
    for root in ("runtime/pocketvlm", "converters/pocketvlm_converters"):
        for path in sorted((ROOT / root).rglob("*.py")):
            if not any(f"/{folder}/" in path.as_posix() for folder in COMMANDS):
                wrong += [
                    f"{path.name}: {text}"
                    for text in texts(path)
                    if " " in text and re.search(r"(?<![\w-])--[a-z]", text) and not OF_OTHERS.search(text)
                ]
    assert not wrong
