"""Videos that tests make."""

from __future__ import annotations

import io
from typing import Any

import av


def lossless(frames: list[Any], rate: int = 2) -> bytes:
    """Return a video of RGB pictures without loss."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
