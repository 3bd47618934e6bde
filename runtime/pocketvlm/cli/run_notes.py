"""What a run says about the model and how it saw the pictures. What is true of the whole run is said once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.messages import ImageTimings

_OTHER_MODELS = "for photographs: pocketvlm models --fits free"


class RunNotes:
    """`vlm` is the model of the run."""

    def __init__(self, vlm: VLM) -> None:
        self._name, self._scope = vlm.info.name, vlm.scope
        self._pointed_to_others = self._reported_size = False

    def about_model(self) -> str | None:
        """Return what the model is made for and where others are; None if it is for pictures of any kind."""
        if self._scope is None or self._pointed_to_others:
            return None
        self._pointed_to_others = True
        return f"{self._name} knows only {self._scope.knows}; {_OTHER_MODELS}"

    def about_answer(
        self, notes: Sequence[str] | None, images: Sequence[ImageTimings], *, high: str = "--detail high"
    ) -> list[str]:
        """Return lines about an answer with these `notes`, and about the pictures of its question.

        `high` is what a person gives to see pictures in more detail.
        """
        lines: list[str] = []
        if notes and self._scope and not self._pointed_to_others:
            self._pointed_to_others = True
            lines.append(f"{'; '.join(notes)}; {_OTHER_MODELS}")
        else:
            lines += [f"{note}." for note in notes or ()]
        if images and (line := self.about_model()):
            lines.append(line)
        shrunk = [image for image in images if image.shrunk]
        if shrunk and not self._reported_size:
            self._reported_size = True
            lines.append(_size_note(shrunk, high))
        return lines


def _size_note(shrunk: Sequence[ImageTimings], high: str) -> str:
    """Return how pictures that the model saw with fewer pixels were seen, and what shows more of them, if anything."""
    image = next((image for image in shrunk if image.high_size), shrunk[0])
    (width, height), (w, h) = image.original_size, image.used_size
    what = f"The picture of {width}x{height} was seen at {w}x{h} pixels"
    if len(shrunk) > 1:
        what = f"{len(shrunk)} pictures were seen smaller than they are, such as {width}x{height} at {w}x{h} pixels"
    if image.high_size:
        return f"{what}; {high} shows {image.high_size[0]}x{image.high_size[1]}."
    return f"{what}, the most that the model sees here."
