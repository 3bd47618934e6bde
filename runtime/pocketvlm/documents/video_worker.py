"""Decode frames of a video with FFmpeg, by way of PyAV: a program for `decoder_process`.

The demuxer is the one for the file's signature, and may open nothing else: formats that refer to other files or
addresses, such as playlists, are never tried.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np

from pocketvlm.documents.decoder_worker import Answer, Decoder, DecodingError, serve
from pocketvlm.documents.still_blocks import RGB, StillBlocks

_SEEK_BEYOND = 5.0  # seconds; what is nearer is reached by decoding on
_BACK = (5.0, 20.0, math.inf)  # seconds before a time, tried in turn where a seek went beyond it
_MOST_DAMAGED = 100  # packets in a row
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a song


class _Video:
    def __init__(self, content: Path | bytes, options: Mapping[str, Any]) -> None:
        self._max_pixels = options["max_pixels"]
        file = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
        try:
            self._container = av.open(
                file, format=options["format"], options={"protocol_whitelist": "pipe"}, metadata_errors="replace"
            )
        except (av.FFmpegError, ValueError):
            raise DecodingError("damaged", "damaged or truncated, or not a video") from None
        streams = [one for one in self._container.streams.video if not int(one.disposition) & _ATTACHED_PICTURE]
        if not streams:
            raise DecodingError("damaged", "has no pictures")
        self._stream = streams[0]
        self._stream.codec_context.thread_count = 1
        self._start = float((self._stream.start_time or 0) * self._stream.time_base)
        self._frames: Iterator[Any] = iter(())
        self._current: Any = None  # the last decoded frame
        self._next: Any = None  # the one behind it
        self._still = StillBlocks()

    @property
    def facts(self) -> dict[str, Any]:
        """Return the length in seconds and the number of frames, 0 where the file does not say."""
        stream = self._stream
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not seconds and self._container.duration:
            seconds = self._container.duration / av.time_base
        count = stream.frames
        if not seconds or not count:
            last, number = 0.0, 0
            with suppress(av.FFmpegError):  # a file that was cut ends here
                for packet in self._container.demux(stream):
                    if packet.pts is not None:
                        end = packet.pts + (packet.duration or 0)
                        last, number = max(last, float(end * stream.time_base) - self._start), number + 1
            seconds, count = seconds or last, count or number
            self._seek(0.0)
        return {"seconds": seconds, "frames": count}

    def __call__(self, request: Mapping[str, Any]) -> Answer:
        """Return the frame that is shown at a time in seconds, upright and with square pixels.

        With `still`, the times of earlier frames, parts of the picture that have not moved since are as they were.
        With `look`, only say whether anything has `moved` since the frames that were looked at before.
        """
        time = request["time"]
        if request.get("look"):
            return {"moved": self._still.show(self._pixels_at(time), time)}, []
        if "still" not in request:
            pixels = self._pixels_at(time)
        else:
            if not self._still.follows(request["still"]):
                self._still = StillBlocks()
            for earlier in request["still"][len(self._still.times) :]:
                self._still.show(self._pixels_at(earlier), earlier)
            self._still.show(self._pixels_at(time), time)
            assert self._still.picture is not None
            pixels = self._still.picture
        height, width, _ = pixels.shape
        return {"size": [width, height]}, [pixels.data.cast("B")]

    def _pixels_at(self, time: float) -> RGB:
        """Return a frame, uint8 [height, width, 3], C-contiguous."""
        frame = self._frame_at(time)
        if frame is None:
            raise DecodingError("damaged", "damaged or truncated")
        if frame.width * frame.height > self._max_pixels:
            message = f"{frame.width}x{frame.height} is over the limit of {self._max_pixels / 1e6:,.1f} megapixels"
            raise DecodingError("too large", message)
        width, aspect = frame.width, self._stream.sample_aspect_ratio
        if aspect and 0.1 < aspect < 10:
            width = max(1, round(width * float(aspect)))
            width = min(width, self._max_pixels // frame.height)
        pixels = frame.reformat(format="rgb24", width=width, height=frame.height).to_ndarray()
        upright: RGB = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
        return upright

    def _frame_at(self, time: float) -> Any:
        here = self._time_of(self._current)
        if self._current is None or time < here or time > here + _SEEK_BEYOND:
            self._seek_before(time)
        while self._next is not None and self._time_of(self._next) <= time + 1e-6:
            self._advance()
        return self._current

    def _seek_before(self, time: float) -> None:
        """Go to a frame that is not later than `time`.

        Formats without an index, such as MPEG-TS, are sought by the times of packets. From there, the first frame that
        can be decoded may be a whole group of pictures later.
        """
        for back in (0.0, *_BACK):
            self._seek(time - back)
            is_before = self._current is not None and self._time_of(self._current) <= time + 1e-6
            if is_before or time <= back:
                return

    def _seek(self, time: float) -> None:
        place = int((time + self._start) / self._stream.time_base) if time > 0 else 0
        with suppress(av.FFmpegError):
            self._container.seek(max(0, place), stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._current = self._next = None
        self._advance()
        self._advance()

    def _advance(self) -> None:
        """Go to the next frame, past damaged ones; the last of a damaged file is the last that can be decoded."""
        following = None
        for _ in range(_MOST_DAMAGED):
            try:
                following = next(self._frames, None)
                break
            except av.FFmpegError:
                self._frames = self._container.decode(self._stream)
        self._current = self._next or self._current
        self._next = following
        if self._current is None:
            self._current = following

    def _time_of(self, frame: Any) -> float:
        return 0.0 if frame is None or frame.time is None else frame.time - self._start


def _open(content: Path | bytes, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Decoder]:
    video = _Video(content, options)
    return video.facts, video


if __name__ == "__main__":
    serve(_open)
