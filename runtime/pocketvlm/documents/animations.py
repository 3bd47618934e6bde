"""When the frames of an animation are shown, read from the file's structure. Nothing is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import IO, Any

from pocketvlm.pictures.gif import frame_delays
from pocketvlm.pictures.opened import MAX_PICTURES

_QUICK = 0.015  # seconds; viewers take shorter GIF delays for a mistake
_USUAL = 0.1  # what they wait instead


def frame_times(file: IO[bytes]) -> tuple[list[float], float]:
    """Return the times of the frames of a GIF, WebP or PNG in seconds from the first, and the length of all.

    Both are empty for other files, for a single picture, and where the file is damaged. Raises ValueError for more
    than MAX_PICTURES.
    """
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    delays: Callable[[IO[bytes]], Iterator[float]]
    if head[:4] == b"GIF8":
        delays = _gif
    elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
        delays = _webp
    elif head[:8] == b"\x89PNG\r\n\x1a\n":
        delays = _png
    else:
        return [], 0.0
    try:
        shown = list(islice(delays(file), MAX_PICTURES + 1))
    except (struct.error, IndexError):  # the file ends early
        return [], 0.0
    finally:
        file.seek(0)
    if len(shown) > MAX_PICTURES:
        raise ValueError(f"has more than {MAX_PICTURES:,} frames")
    times = list(accumulate(shown, initial=0.0))
    return (times[:-1], times[-1]) if len(shown) > 1 else ([], 0.0)


def _gif(file: IO[bytes]) -> Iterator[float]:
    for delay in frame_delays(file):
        yield delay if delay > _QUICK else _USUAL


def _webp(file: IO[bytes]) -> Iterator[float]:
    """RFC 9649, section 2.7: the duration of an ANMF chunk is in milliseconds, in 24 bits."""
    for name, size in _chunks(file, 12, "<4sI"):
        if name == b"ANMF":
            data = file.read(16)
            yield (data[12] | data[13] << 8 | data[14] << 16) / 1000
            file.seek(size - 16, 1)
        else:
            file.seek(size, 1)
        file.seek(size & 1, 1)


def _png(file: IO[bytes]) -> Iterator[float]:
    """PNG, third edition, section 11.3.6: an fcTL chunk has the delay as a fraction of seconds."""
    for size, name in _chunks(file, 8, ">I4s"):
        if name == b"fcTL":
            top, bottom = struct.unpack(">20xHH2x", file.read(26))
            yield top / (bottom or 100)
            file.seek(size - 26 + 4, 1)
        else:
            file.seek(size + 4, 1)


def _chunks(file: IO[bytes], start: int, form: str) -> Iterator[tuple[Any, Any]]:
    file.seek(start)
    while len(head := file.read(8)) == 8:
        yield struct.unpack(form, head)
