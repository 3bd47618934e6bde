"""A screen recording costs what moves: tiles that look the same as before are not encoded again."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from engine_seam import vision_of
from pocketvlm import VLM, open_document
from pocketvlm.vision import families

SECONDS, RATE, SIZE = 60, 5, (288, 192)  # three by two tiles of iota
STATE = 2  # seconds between two movements


def screen(time: float) -> Any:
    """Return the picture at a time: a desktop, and a square that moves within one tile."""
    rng = np.random.default_rng(7)
    desktop = rng.integers(0, 256, (SIZE[1] // 4, SIZE[0] // 4, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(desktop).resize(SIZE, Image.Resampling.BICUBIC)).copy()
    state = int(time / STATE + 1e-6)
    x, y = 8 + state * 13 % 60, 8 + state * 29 % 60
    pixels[y : y + 20, x : x + 20] = np.random.default_rng(state).integers(0, 256, 3)
    return pixels


def recording(quality: int) -> bytes:
    """Return a lossy recording that codes the whole picture anew every ten seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size = 10 * RATE
        stream.options = {"crf": str(quality)}
        for number in range(SECONDS * RATE):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(screen(number / RATE), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("quality", [23, 30])
def test_what_does_not_move_is_not_encoded(quality: int) -> None:
    encoded, changed = {}, set()
    data = recording(quality)
    for changes in (True, False):
        with VLM.load() as vlm, open_document(data, fps=1, changes=changes) as document:
            known = families.find(dict(vlm.info.picture_metadata))
            assert known is not None
            plan = known[1].plan(SIZE, "auto", None)
            for page in document.pages():
                prepared = vision_of(vlm).prepare(page.read(), "auto", None, "")
                for span in prepared.spans:
                    prepared.encode(span)
                assert page.time is not None
                tiles = known[1].tiles(screen(page.time), plan)
                changed |= {(place, tile.tobytes()) for place, tile in enumerate(tiles)}
            encoded[changes] = vlm.statistics().tiles_encoded
    assert len(changed) == 5 + 2 * (SECONDS // STATE) - 2  # two states look alike
    assert encoded[True] <= 1.2 * len(changed)
    assert encoded[False] > 1.5 * len(changed), "the codec does not change what stands still"
