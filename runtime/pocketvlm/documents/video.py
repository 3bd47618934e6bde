"""Videos: frames at even times, decoded by FFmpeg in a process of its own. A frame's label is its time."""

from __future__ import annotations

import math
import time
from dataclasses import InitVar, dataclass
from importlib.util import find_spec
from pathlib import Path

from pocketvlm.documents.decoder_process import DecoderProcess, DecoderStoppedError, check_answer
from pocketvlm.documents.document import Document
from pocketvlm.documents.fit import Fit
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import RequestError
from pocketvlm.pictures.images import Picture, picture_of
from pocketvlm.pictures.sources import Source

_WORKER = "pocketvlm.documents.video_worker"
_FRAMES = 8  # of a video, where nothing else is asked for
_MAX_FRAMES = 100_000


@dataclass(frozen=True)
class Sampling:
    """Which frames: `fps` of each second, or `frames` at even times; by default a few.

    Raises RequestError for both; `param` is the path of `fps` in the request.
    """

    fps: float | None = None
    frames: int | None = None
    param: InitVar[str] = "fps"

    def __post_init__(self, param: str) -> None:
        if self.fps is not None and self.frames is not None:
            raise RequestError("cannot be combined with frames", param)

    def times(self, seconds: float, count: int) -> list[float]:
        """Return the times for a video of a length and a number of frames."""
        if self.fps is not None:
            wanted = max(1, min(math.ceil(seconds * self.fps - 1e-6), _MAX_FRAMES))
            return [number / self.fps for number in range(wanted)]
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
    ) -> None:
        if find_spec("av") is None:
            raise source.error('video needs one more package: pip install "pocketvlm[video]"')
        self._max_pixels = pixels
        options = {"format": format, "max_pixels": pixels}
        self._process = DecoderProcess(_WORKER, content, options, limits)
        try:
            facts = self._process.open()
        except DecoderStoppedError as error:
            raise source.error(f"cannot be opened: {error}") from None
        check_answer(facts, source)
        self._times = sampling.times(facts["seconds"], facts["frames"])
        super().__init__(source, len(self._times), "frame")

    def label(self, number: int) -> str:
        """Return the time of a frame, such as 0:04.5."""
        tenths = round(10 * self._times[number - 1])
        minutes, rest = divmod(tenths, 600)
        return f"{minutes}:{rest // 10:02}.{rest % 10}"

    def read(self, number: int, fit: Fit | None = None) -> Picture:  # noqa: ARG002
        import numpy as np

        started = time.perf_counter()
        source = Source(f"{self.source.name}: {self.label(number)}", self.source.param)
        try:
            answer, data = self._process.ask({"time": self._times[number - 1]}, 3 * self._max_pixels)
        except DecoderStoppedError as error:
            raise source.error(f"cannot be decoded: {error}") from None
        check_answer(answer, source)
        width, height = answer["size"]
        return picture_of(np.frombuffer(data, np.uint8).reshape(height, width, 3), started, pages=len(self))

    def close(self) -> None:
        self._process.close()

    def rest(self) -> None:
        self._process.rest()
