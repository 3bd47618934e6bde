"""pocketvlm: image-text chat with quantized vision-language models on the machine in front of you."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.errors import PocketVLMError
    from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ChatRequest

__version__ = "0.1.0"
__all__ = ["VLM", "ChatCompletion", "ChatCompletionChunk", "ChatRequest", "PocketVLMError", "__version__"]

_HOMES = {
    "VLM": "pocketvlm.chat.vlm",
    "PocketVLMError": "pocketvlm.errors",
    "ChatCompletion": "pocketvlm.messages",
    "ChatCompletionChunk": "pocketvlm.messages",
    "ChatRequest": "pocketvlm.messages",
}


def __getattr__(name: str) -> object:
    # Importing pocketvlm must not load native libraries: the command line asks for help far more often than for VLM.
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
