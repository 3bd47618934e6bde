"""Image-text chat with quantized vision-language models on your own machine, without a network.

    from pocketvlm import VLM

    with VLM.load() as vlm:
        print(vlm.ask("What is this?", "photo.jpg"))

Public are the names in `__all__` here and in `pocketvlm.bench`. Everything else is private and may change in any
version, modules included: import `RequestError` from `pocketvlm`, not from the module that defines it.
"""

# ruff: noqa: F403, F405, RUF022  # the star imports are for type checkers alone, and __all__ is sorted by kind

import typing as _typing

if _typing.TYPE_CHECKING:
    from pocketvlm import bench, errors
    from pocketvlm.chat.async_vlm import AsyncVLM
    from pocketvlm.chat.load_options import LoadOptions
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.decisions.decision import Decision
    from pocketvlm.documents.document import Document, Page
    from pocketvlm.documents.limits import DocumentLimits
    from pocketvlm.documents.open_document import open_document
    from pocketvlm.engine.interface import CancellationToken, EngineInfo, Statistics, TokenCount
    from pocketvlm.errors import *
    from pocketvlm.files.bundle import Scope
    from pocketvlm.files.pull import pull
    from pocketvlm.messages import *
    from pocketvlm.pictures.handles import HandleLimits, PictureHandle
    from pocketvlm.reading.read import read
    from pocketvlm.reading.read_page import PageText

__version__ = "0.2.0"
# fmt: off
__all__ = [
    "VLM", "AsyncVLM", "LoadOptions", "HandleLimits", "PictureHandle", "EngineInfo", "Scope", "Statistics",
    "CancellationToken", "TokenCount", "pull", "bench", "errors", "open_document", "Document", "DocumentLimits",
    "Decision", "Page", "PageText", "read", "__version__",
    # messages
    "AssistantMessage", "Box", "ChatCompletion", "ChatCompletionChunk", "ChatRequest", "Choice", "ChoiceLogprobs",
    "ChunkChoice", "CompletionTokensDetails", "Content", "Delta", "Detail", "FilePart", "FinishReason",
    "FunctionDelta", "ImagePart", "ImageTimings", "ImageURL", "ImageURLPart", "Message", "Outline", "ParsedCompletion",
    "Part", "Point", "PromptTokensDetails", "Region", "ResponseFormat", "ResponseFunction", "ResponseMessage",
    "ResponseToolCall", "StreamOptions", "SystemMessage", "TextContent", "TextPart", "Timings", "TokenLogprob", "Tool",
    "ToolCall", "ToolCallDelta", "ToolChoice", "ToolMessage", "TopLogprob", "Usage", "UserMessage",
    # errors
    "PocketVLMError", "RequestError", "ImageError", "ImageNotFoundError", "ImageFormatError", "ImageTooLargeError",
    "PasswordError", "ContextLengthError", "MemoryBudgetError", "UnsupportedError", "AnswerError", "FileError",
    "ModelError", "ModelNotFoundError", "ModelFormatError", "PairingError", "BundleError", "PictureCacheError",
    "SessionError", "CalibrationError", "DownloadError", "ConversionError", "CheckpointError", "QuantizationError",
    "TokenizerError", "ProofError", "OutputError", "EngineError", "EngineBusyError", "EngineClosedError",
    "EngineCrashedError", "QueueFullError", "SystemLimitError", "GenerationCancelledError", "NativeLibraryError",
]
# fmt: on

# Names that are neither errors nor messages.
_HOMES = {
    "VLM": "pocketvlm.chat.vlm",
    "AsyncVLM": "pocketvlm.chat.async_vlm",
    "LoadOptions": "pocketvlm.chat.load_options",
    "CancellationToken": "pocketvlm.engine.interface",
    "EngineInfo": "pocketvlm.engine.interface",
    "Statistics": "pocketvlm.engine.interface",
    "Decision": "pocketvlm.decisions.decision",
    "Document": "pocketvlm.documents.document",
    "DocumentLimits": "pocketvlm.documents.limits",
    "Page": "pocketvlm.documents.document",
    "PageText": "pocketvlm.reading.read_page",
    "read": "pocketvlm.reading.read",
    "open_document": "pocketvlm.documents.open_document",
    "TokenCount": "pocketvlm.engine.interface",
    "Scope": "pocketvlm.files.bundle",
    "pull": "pocketvlm.files.pull",
    "HandleLimits": "pocketvlm.pictures.handles",
    "PictureHandle": "pocketvlm.pictures.handles",
}
_MODULES = ("bench", "errors")


def __getattr__(name: str) -> _typing.Any:
    """Import a public name when it is first used: the command line must start fast, and loads no native library."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return import_module(f"pocketvlm.{name}")
    value = getattr(import_module(_home(name)), name)
    globals()[name] = value
    return value


def _home(name: str) -> str:
    return _HOMES.get(name, "pocketvlm.errors" if name.endswith("Error") else "pocketvlm.messages")


def __dir__() -> list[str]:
    return sorted(__all__)
