"""All errors that pocketvlm raises on purpose. Each message names what is wrong: a file, a field or a picture.

A message is one line of limited length without control characters, whatever a file or another library has put into it.

PocketVLMError
├── RequestError (ValueError)           the request is wrong; `param` is the path of the field
│   ├── ImageError                      a picture of the request cannot be used
│   │   ├── ImageNotFoundError (FileNotFoundError)
│   │   ├── ImageFormatError            not a picture, truncated, or in an unsupported format
│   │   ├── ImageTooLargeError          over the pixel limit
│   │   └── PasswordError               encrypted, and the password is missing or wrong
│   ├── UnsupportedError                what this version, or this model, does not support: of a schema, places
│   ├── ContextLengthError              the prompt does not fit the context
│   └── MemoryBudgetError               the model does not fit the allowed memory
├── AnswerError (ValueError)            an answer is not an instance of the class that was asked for
├── FileError                           a file cannot be used; `path` is the file
│   ├── ModelError                      a model file or bundle
│   │   ├── ModelNotFoundError (FileNotFoundError)
│   │   ├── ModelFormatError (ValueError)   truncated, of another format, or the wrong kind of model
│   │   ├── PairingError (ValueError)       language model and vision encoder do not belong together
│   │   └── BundleError (ValueError)        missing or broken manifest, or a file that does not match its hash
│   ├── PictureCacheError (OSError)     the folder of the embedding cache cannot be used, or is not private
│   ├── SessionError (ValueError)       a saved conversation is damaged, or of another model or engine
│   ├── DownloadError (OSError)         `pocketvlm pull` cannot download a file, or got other content than expected
│   └── ConversionError                 a conversion was refused or failed; nothing was written
│       ├── CheckpointError (ValueError)    a missing shard or tensor, an unknown architecture, NaN weights
│       ├── QuantizationError (ValueError)  an unknown type, or one that needs an importance matrix
│       ├── TokenizerError (ValueError)     unknown pre-tokenizer, or the GGUF vocabulary tokenizes differently
│       ├── ProofError (ValueError)         the finished bundle does not do what the checkpoint does
│       └── OutputError (OSError)           the target cannot be written: read-only, full, or it exists already
├── EngineError (RuntimeError)          the engine failed or is closed
│   ├── EngineBusyError                 try again: all sequences are in use, the system is too busy to try a
│   │                                   schema, or this thread has an unfinished stream
│   ├── EngineClosedError
│   ├── EngineCrashedError              native code died during this request; the engine restarts by itself
│   ├── QueueFullError                  too many requests wait; try again after `retry_after` seconds
│   ├── SystemLimitError                the system gives too little memory, or too few threads or files
│   └── GenerationCancelledError        the generation was cancelled
└── NativeLibraryError (ImportError)    llama-cpp-python or onnxruntime is missing, or lacks a function or device
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path

_QUOTED, _LONGEST_PATH, _LONGEST = 200, 400, 2000  # characters of a quote, of a path, of a message
# What acts on a terminal, in escape sequences or alone: controls, but not tabs and line breaks.
_CONTROLS = "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"
_UNPRINTABLE = re.compile(f"[{_CONTROLS}]")
# Also tabs, line breaks, half surrogates, and marks that turn the direction of the text around.
_UNSHOWN = re.compile(f"[{_CONTROLS}\\t\\n\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _QUOTED


def printable(text: str, instead: str = "") -> str:
    """Return foreign text for a terminal: `instead` stands for each control character but tabs and line breaks."""
    return _UNPRINTABLE.sub(instead, text)


def shortened(text: object, most: int = _QUOTED) -> str:
    """Return foreign text for an error: at most `most` characters, cut in the middle, without control characters."""
    whole = str(text)
    shown = _escaped(whole if len(whole) <= 2 * most else whole[:most] + whole[-most:])
    if len(shown) <= most:
        return shown
    end = most // 3
    return f"{shown[: most - end - 1]}…{shown[-end:]}"


def quoted(value: object) -> str:
    """Return a foreign value for an error, as Python writes it, but not longer than `shortened` allows."""
    return shortened(_REPR.repr(value))


def _escaped(text: str) -> str:
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def _one_line(message: str) -> str:
    return shortened(message.strip(), _LONGEST)


class PocketVLMError(Exception):
    """Base of all errors that a user can act on. Foreign text in a message is `quoted` or `shortened`."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(message))


class RequestError(PocketVLMError, ValueError):
    """`param` is the path of the field, such as `messages.0.content.1.image_url.url`; `code` is for programs."""

    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        self.message = _one_line(message)
        super().__init__(f"{shortened(param)}: {self.message}" if param else self.message)
        self.param = param


class ImageError(RequestError):
    """A picture of the request cannot be used."""

    code = "invalid_image"


class ImageNotFoundError(ImageError, FileNotFoundError):
    code = "image_not_found"


class ImageFormatError(ImageError):
    code = "invalid_image_format"


class ImageTooLargeError(ImageError):
    code = "image_too_large"


class PasswordError(ImageError):
    """A document is encrypted, and its password is missing or wrong."""

    code = "password_required"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class MemoryBudgetError(RequestError):
    """`needed` is the least memory that would do, in bytes."""

    code = "memory_budget"

    def __init__(self, message: str, param: str | None, needed: int) -> None:
        super().__init__(message, param)
        self.needed = needed


class UnsupportedError(RequestError):
    code = "unsupported"


class AnswerError(PocketVLMError, ValueError):
    """An answer is not an instance of the class that was the `response_format`. `text` is the answer, or its part."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


class FileError(PocketVLMError):
    """`path` is the file or folder that cannot be used, if there is one."""

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        self.message = _one_line(message)
        super().__init__(self.message if path is None else f"{shortened(path, _LONGEST_PATH)}: {self.message}")
        self.path = Path(path) if path is not None else None


class ModelError(FileError):
    """A model file or bundle cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    pass


class ModelFormatError(ModelError, ValueError):
    pass


class PairingError(ModelError, ValueError):
    pass


class BundleError(ModelError, ValueError):
    pass


class PictureCacheError(FileError, OSError):
    pass


class SessionError(FileError, ValueError):
    """A saved conversation is damaged, belongs to another model or engine, or cannot be written."""


class CalibrationError(FileError, ValueError):
    """A calibration of decisions is damaged, belongs to another model, or cannot be written."""


class DownloadError(FileError, OSError):
    """`path` names a repository on the hub, or a file in one."""


class ConversionError(FileError):
    """A conversion was refused or failed; nothing was written."""


class CheckpointError(ConversionError, ValueError):
    pass


class QuantizationError(ConversionError, ValueError):
    pass


class TokenizerError(ConversionError, ValueError):
    pass


class ProofError(ConversionError, ValueError):
    pass


class OutputError(ConversionError, OSError):
    pass


class EngineError(PocketVLMError, RuntimeError):
    pass


class EngineBusyError(EngineError):
    pass


class EngineClosedError(EngineError):
    pass


class EngineCrashedError(EngineError):
    code = "engine_crashed"


class QueueFullError(EngineError):
    """`retry_after` is in seconds, estimated from the time of the last requests."""

    code = "queue_full"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SystemLimitError(EngineError):
    """A limit of the system, which the message names, is too small: memory, addresses, threads or open files."""

    code = "system_limit"


class GenerationCancelledError(EngineError):
    pass


class NativeLibraryError(PocketVLMError, ImportError):
    pass
