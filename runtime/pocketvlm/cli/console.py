"""What commands print on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketvlm.errors import PocketVLMError, RequestError, shortened
from pocketvlm.system.option_names import flag_of, with_flags

if TYPE_CHECKING:
    from rich.status import Status

_PICTURE_FIELDS = ("path", "url", "image", "image_url")  # the messages of their errors name the picture itself


def waiting(text: str) -> Status:
    """Show `text` on standard error while something takes its time, if it is a terminal."""
    from rich.console import Console

    return Console(stderr=True).status(text)


def error_message(error: PocketVLMError) -> str:
    """Return the message for a person at the command line, who did not write the messages of the request.

    For an error in them it names the picture or the option instead of the path of the field.
    """
    if not isinstance(error, RequestError):
        return with_flags(str(error))
    before, _, field = (error.param or "").rpartition(".")
    message = with_flags(error.message)
    in_messages = before.startswith("messages")
    if (before and field in _PICTURE_FIELDS) or (in_messages and field.isdigit()):
        return message
    name = field if in_messages else error.param
    return f"{shortened(flag_of(name))}: {message}" if name else message
