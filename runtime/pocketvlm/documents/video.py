"""Videos: frames at even times, decoded by FFmpeg in a process of its own. A frame's label is its time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketvlm.documents.decoder_process import DecoderProcess, DecoderStoppedError, check_answer
from pocketvlm.documents.document import Document
from pocketvlm.documents.fit import Fit
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import ImageTooLargeError, RequestError
from pocketvlm.pictures.images import Picture, picture_of
from pocketvlm.pictures.sources import Source
from pocketvlm.system.extras import install_extra

_WORKER = "pocketvlm.documents.video_worker"
_FRAMES = 8  # of a video, where nothing else is asked for
_LOOKS = 1.0  # frames of each second that are compared, where nothing else is asked for
_MAX_FRAMES = 100_000


@dataclass(frozen=True)
class Sampling:
    """Which frames: `fps` of each second, or `frames` at even times; by default a few.

    With `changes`, frames in which nothing moves are left out; by default, one of each second is looked at.

    Raises RequestError for both of `fps` and `frames`; `param` is the path of `fps` in the request.
    """

    fps: float | None = None
    frames: int | None = None
    changes: bool = False
    param: InitVar[str] = "fps"

    def __post_init__(self, param: str) -> None:
        if self.fps is not None and self.frames is not None:
            raise RequestError("cannot be combined with frames", param)

    def times(self, seconds: float, count: int) -> list[float]:
        """Return the times for a video of a length and a number of frames."""
        fps = _LOOKS if self.changes and self.frames is None and self.fps is None else self.fps
        if fps is not None:
            wanted = max(1, min(math.ceil(seconds * fps - 1e-6), _MAX_FRAMES))
            return [number / fps for number in range(wanted)]
        wanted = min(self.frames or _FRAMES, max(1, count))
        return [(number + 0.5) * seconds / wanted for number in range(wanted)]


class VideoDocument(Document):
    """Frames keep their size; a `Fit` does not change it. Raises ImageError for a file that cannot be used."""

    def __init__(
        self,
        source: Source,
        content: Path | bytes,
        format: str,
        limits: DocumentLimits,
        sampling: Sampling,
        pixels: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises where nothing is wanted any more; it is called for each frame that is compared."""
        self.source = source
        if find_spec("av") is None:
            raise source.error(f"video needs one more package: {install_extra('video')}")
        self._max_pixels = pixels
        options = {"format": format, "max_pixels": pixels}
        self._process = DecoderProcess(_WORKER, content, options, limits)
        try:
            facts = self._process.open()
        except DecoderStoppedError as error:
            raise source.error(f"cannot be opened: {error}") from None
        check_answer(facts, source)
        self.seconds = facts["seconds"]
        self.times = sampling.times(self.seconds, facts["frames"])
        self._still = sampling.changes
        if sampling.changes:
            try:
                self.times = self._moving(self.times, limits.request_seconds, check)
            except BaseException:  # Ctrl-C too: the caller has nothing to close
                self._process.close()
                raise
        super().__init__(source, len(self.times), "frame")

    def read(self, number: int, fit: Fit | None = None) -> Picture:  # noqa: ARG002
        import numpy as np

        started = time.perf_counter()
        request: dict[str, Any] = {"time": self.times[number - 1]}
        if self._still:
            request["still"] = self.times[: number - 1]
        answer, data = self._ask(request, self.label(number))
        width, height = answer["size"]
        return picture_of(np.frombuffer(data, np.uint8).reshape(height, width, 3), started, pages=len(self))

    def _moving(self, times: Sequence[float], seconds: float, check: Callable[[], None]) -> list[float]:
        """Return those times at which something has moved since the one before. Raises ImageTooLargeError."""
        moving: list[float] = []
        latest = time.perf_counter() + seconds
        for at in times:
            check()
            if time.perf_counter() > latest:
                raise self.source.error(
                    f"{at:.1f} s: comparing its frames takes more than {round(seconds, 3):g} s; "
                    "compare fewer with fps or frames",
                    ImageTooLargeError,
                )
            answer, _ = self._ask({"time": at, "look": True}, f"{at:.1f} s")
            if answer["moved"]:
                moving.append(at)
        return moving

    def _ask(self, request: dict[str, Any], label: str) -> tuple[dict[str, Any], bytes]:
        source = Source(f"{self.source.name}: {label}", self.source.param)
        try:
            answer, data = self._process.ask(request, 3 * self._max_pixels)
        except DecoderStoppedError as error:
            raise source.error(f"cannot be decoded: {error}") from None
        check_answer(answer, source)
        return answer, data

    def close(self) -> None:
        self._process.close()

    def rest(self) -> None:
        self._process.rest()
