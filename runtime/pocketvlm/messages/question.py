"""A question about pictures, as people ask it in Python: a text and the pictures, without roles and parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from pocketvlm.errors import RequestError
from pocketvlm.messages.parts import Part

if TYPE_CHECKING:
    import os

    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    AnyPicture: TypeAlias = (
        str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8] | Mapping[str, Any] | Part
    )

_PICTURE = re.compile(r"messages\.0\.content\.(\d+)\b.*")


def question_messages(question: str, pictures: Sequence[AnyPicture]) -> list[dict[str, Any]]:
    """Return the messages of a question. A picture is a path or URL, an object that is one, or a part."""
    parts: list[Any] = [
        {"type": "image", "image": picture} if isinstance(picture, str) else picture for picture in pictures
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@contextmanager
def picture_errors(count: int) -> Iterator[None]:
    """Name the picture in errors about `question_messages` of `count` pictures: `pictures.1`, not a path of a part."""
    try:
        yield
    except RequestError as error:
        match = _PICTURE.fullmatch(error.param or "")
        if match is None or int(match[1]) > count:
            raise
        param = f"pictures.{match[1]}" if int(match[1]) < count else "question"
        raise type(error)(error.message, param) from None
