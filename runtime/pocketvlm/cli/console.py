"""What commands print on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketvlm.errors import PocketVLMError, RequestError

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
        return str(error)
    before, _, field = (error.param or "").rpartition(".")
    if before and field in _PICTURE_FIELDS:
        return error.message
    if not before.startswith("messages"):
        return str(error)
    return error.message if field.isdigit() else f"{field}: {error.message}"
