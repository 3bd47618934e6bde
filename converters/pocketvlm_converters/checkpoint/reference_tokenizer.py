"""Load tokenizer.json with the tokenizers package, the reference for every vocabulary that is converted from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketvlm.errors import TokenizerError
from pocketvlm.system.extras import install_extra

FILE = "tokenizer.json"


def load_reference(path: Path) -> Any:
    """Return a tokenizers.Tokenizer that neither truncates nor pads. Raises TokenizerError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TokenizerError(f"the tokenizers package is missing: {install_extra('convert')}", path) from error
    with _as_tokenizer_error("cannot be loaded", path):
        reference = Tokenizer.from_file(str(path))
    reference.no_truncation()
    reference.no_padding()
    return reference


def encode(reference: Any, text: str, path: Path, *, post_process: bool = False) -> Any:
    """Return the tokenizers.Encoding of a text. `post_process` adds what the post_processor adds.

    Raises TokenizerError, which names `path`, where the file loads and cannot be used.
    """
    with _as_tokenizer_error("cannot be used", path):
        return reference.encode(text, add_special_tokens=post_process)


def decode(reference: Any, token: int, path: Path) -> str:
    """Return the text of a token. Raises TokenizerError as `encode` does."""
    with _as_tokenizer_error("cannot be used", path):
        text: str = reference.decode([token], skip_special_tokens=False)
        return text


@contextmanager
def _as_tokenizer_error(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises plain Exception, and BaseException when its Rust code panics
        raise TokenizerError(f"{what}: {error}", path) from None
