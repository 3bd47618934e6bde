"""Load tokenizer.json with the tokenizers package, the reference for every vocabulary that is converted from it."""

from __future__ import annotations

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
    try:
        reference = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises plain Exception, and BaseException when its Rust code panics
        raise TokenizerError(f"cannot be loaded: {error}", path) from None
    reference.no_truncation()
    reference.no_padding()
    return reference
