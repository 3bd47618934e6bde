"""Videos: which frames are read, how they are turned, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pocketvlm.documents.document import Document
from pocketvlm.documents.expand import expanded, page_of
from pocketvlm.documents.fit import printed_size
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_document, open_part
from pocketvlm.documents.still_blocks import StillBlocks
from pocketvlm.documents.video import Sampling
from pocketvlm.errors import GenerationCancelledError, ImageFormatError, ImageTooLargeError, RequestError
from pocketvlm.messages import ChatRequest, FilePart, ImagePart
from videos import lossless

SHADE = 4  # each frame is so much lighter than the one before it


def video(
    count: int = 50, *, rate: int = 10, format: str = "mp4", pixels: Any = None, size: Any = (64, 48), gop: int = 12
) -> bytes:
    """Return a video whose frame `n` has the shade SHADE * n, or the `pixels`."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = gop
        for number in range(count):
            grey = np.full((size[1], size[0], 3), SHADE * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey if pixels is None else pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def shown(data: bytes, pages: str | None = None, **options: Any) -> list[tuple[str, int]]:
    """Return labels and the numbers of the frames that were read."""
    with open_document(data, **options) as document:
        return [(page.label, round(float(page.read().pixels.mean()) / SHADE)) for page in document.pages(pages)]


@pytest.mark.parametrize("format", ["mp4", "matroska", "avi", "mpegts"])
def test_frames_at_even_times(format: str) -> None:
    data = video(format=format)
    assert [label for label, _ in shown(data)] == [f"0:0{s}" for s in "0.3 0.9 1.6 2.2 2.8 3.4 4.1 4.7".split()]
    for options, times in (({"frames": 2}, (1.25, 3.75)), ({"fps": 1}, range(5)), ({"fps": 0.4}, (0, 2.5))):
        numbers = [number for _, number in shown(data, **options)]
        assert np.allclose(numbers, [int(10 * time) for time in times], atol=1), (options, numbers)


def test_frames_in_any_order() -> None:
    data = video(60, rate=2)  # 30 s, so that it seeks
    whole = dict(shown(data, fps=1))
    assert len(whole) == 30 and [*whole.values()] == sorted(whole.values())
    assert dict(shown(data, "30,2,15,16,1", fps=1)).items() <= whole.items()
    assert [label for label, _ in shown(data, "30,2", fps=1)] == ["0:29.0", "0:01.0"]


def numbered(count: int, gop: int, format: str) -> bytes:
    """Return a video of H.264 with B-frames, 10 frames a second, each of which shows its number in stripes of bits."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 72, 48, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(count):
            bits = [255 * (number >> bit & 1) for bit in range(9)]
            pixels = np.broadcast_to(np.repeat(np.array(bits, np.uint8), 8)[:, None], (48, 72, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def number_of(pixels: Any) -> int:
    return sum(int(pixels[24, 8 * bit + 4, 0] > 127) << bit for bit in range(9))


@pytest.mark.parametrize("gop", [12, 30, 250])
@pytest.mark.parametrize("format", ["mpegts", "mp4"])
def test_frames_of_groups_with_b_frames(format: str, gop: int) -> None:
    """MPEG-TS has no index: a seek goes to a packet whose group may not be decodable from there."""
    with open_document(numbered(480, gop, format), frames=8) as document:
        for number in (1, 2, 3, 4, 5, 6, 7, 8, 7, 3, 5, 1):
            assert number_of(document.read(number).pixels) == 60 * number - 30, number


def test_a_damaged_packet_is_passed() -> None:
    data = bytearray(numbered(60, 250, "mp4"))
    with av.open(io.BytesIO(bytes(data))) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
        start, size = packet.pos, packet.size
    data[start : start + size] = b"\xff" * size
    with open_document(bytes(data), fps=5) as document:
        numbers = [number_of(page.read().pixels) for page in document.pages()]
    assert len(numbers) == 30 and max(abs(n - 2 * i) for i, n in enumerate(numbers)) <= 4


def test_labels_beyond_a_minute() -> None:
    assert [label for label, _ in shown(video(63, rate=1), "61-", fps=1)] == ["1:00.0", "1:01.0", "1:02.0"]


@pytest.mark.parametrize("first", [(64, 48), (96, 64)])
def test_a_size_that_changes(first: tuple[int, int]) -> None:
    """Two streams one after the other, as a camera writes them whose settings were changed."""
    sizes = [first, (160 - first[0], 112 - first[1])]
    data = b"".join(video(10, size=size, format="mpegts", gop=1) for size in sizes)
    with open_document(data, fps=10) as document:
        pictures = {document.read(number).size for number in (1, 5, len(document) - 1, len(document), 2)}
        assert pictures == set(sizes)
        assert document.read(1).size == document.pages("1").__next__().measure() == first


def test_a_video_of_one_frame() -> None:
    assert [number for _, number in shown(video(1))] == [0]


def test_sampling() -> None:
    assert Sampling(frames=4).times(8, 100) == [1, 3, 5, 7]
    assert Sampling(frames=4).times(2, 2) == [0.5, 1.5]
    assert Sampling(fps=2).times(2, 60) == [0, 0.5, 1, 1.5]
    assert Sampling(fps=1).times(0, 0) == [0]
    with pytest.raises(RequestError) as caught:
        open_document(b"", fps=1, frames=1)
    assert caught.value.param == "fps"
    part = FilePart(type="file", image=video(3), fps=1, frames=1)
    with pytest.raises(RequestError) as of_message:
        open_part(part, "messages.0.content.0", DocumentLimits(), 10_000)
    assert of_message.value.param == "messages.0.content.0.fps"


def test_bytes_of_a_video_are_known_in_any_part() -> None:
    content = [{"type": "image", "image": video(3)}, {"type": "image", "image": b"....ftypheic"}]
    parts = ChatRequest.parse([{"role": "user", "content": content}]).messages[0].content
    assert [type(part).__name__ for part in parts or ()] == ["FilePart", "ImagePart"]


def test_rotation_in_the_container_is_applied() -> None:
    """A matrix in the track's header, as phones write it: the picture is shown a quarter turn clockwise."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255  # the left half is white
    data = bytearray(video(5, pixels=pixels))
    at = data.index(b"tkhd") + 4 + 40
    unit = 1 << 16
    assert struct.unpack_from(">9i", data, at) == (unit, 0, 0, 0, unit, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, 0, unit, 0, -unit, 0, 0, 48 * unit, 0, 1 << 30)
    with open_document(bytes(data), frames=1) as document:
        picture = document.read(1)
        assert picture.size == (48, 64)
        assert picture.pixels[:28].mean() > 240 and picture.pixels[36:].mean() < 15  # now the upper half is


def test_a_video_that_was_cut_short() -> None:
    data = video(format="matroska")
    numbers = [number for _, number in shown(data[: len(data) * 2 // 3], fps=1)]
    assert numbers[0] == 0 and numbers == sorted(numbers) and numbers[-1] < 45


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"this is not a video")
    with pytest.raises(ImageFormatError, match=r"text\.mp4: is not a picture of a supported format"):
        open_document(tmp_path / "text.mp4")
    for data in (video()[:200], b"\x1a\x45\xdf\xa3" + bytes(500)):
        (tmp_path / "cut.mp4").write_bytes(data)
        with pytest.raises(ImageFormatError, match=r"cut\.mp4: damaged or truncated"):
            open_document(tmp_path / "cut.mp4")
    with open_document(video(3), max_pixels=64 * 47) as document, pytest.raises(ImageTooLargeError, match="64x48"):
        document.read(1)
    with pytest.raises(RequestError):
        open_document(video(3), frames=0)


def test_sound_alone() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ImageFormatError, match="has no pictures"):
        open_document(file.getvalue())


def test_a_playlist_reads_no_other_file(tmp_path: Path) -> None:
    """FFmpeg would follow it: a list that names a video next to it."""
    (tmp_path / "a.mp4").write_bytes(video(3))
    for name, text in (("a.m3u8", "#EXTM3U\n#EXTINF:1,\na.mp4\n"), ("b.mp4", "ffconcat version 1.0\nfile a.mp4\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ImageFormatError):
            open_document(tmp_path / name)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_frame_that_takes_too_long() -> None:
    data = video(300, rate=75, size=(1280, 720), gop=300)
    with (
        open_document(data, limits=DocumentLimits(seconds=0.02), fps=4) as document,
        pytest.raises(ImageFormatError, match=r"0:03\.8: cannot be decoded: it takes more than 0\.02 s"),
    ):
        document.read(16)


def written(shades: Any, format: str = "matroska", size: Any = (64, 48), file: Any = None, **options: Any) -> bytes:
    """Return a video of H.264 whose frames have shades at times in milliseconds."""
    file = file or io.BytesIO()
    with av.open(file, "w", format=format, options=options) as container:
        stream: Any = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.options = {"x264-params": "repeat-headers=1:bframes=0"}
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), shade, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return bytes(file.getvalue())


def test_a_variable_rate() -> None:
    """A frame is shown until the next one, however long that takes."""
    data = written([(0, 40), (100, 80), (200, 120), (5000, 160), (5100, 200), (7900, 240)])
    assert [number * SHADE // 40 for _, number in shown(data, fps=1)] == pytest.approx([1, 3, 3, 3, 3, 4, 5, 5], abs=0)


class _Pipe(io.BytesIO):
    """A file that a muxer cannot go back in, to write how long it is."""

    def seekable(self) -> bool:
        return False

    seek = None  # type: ignore[assignment]


def test_a_missing_duration() -> None:
    data = written([(100 * number, 40 * (number // 10 + 1)) for number in range(50)], file=_Pipe())
    with av.open(io.BytesIO(data)) as container:
        assert not container.duration and not container.streams.video[0].duration
    assert [number * SHADE // 40 for _, number in shown(data, fps=1)] == [1, 2, 3, 4, 5]


def test_frames_have_the_size_of_their_stream() -> None:
    parts = [written([(1000 + 100 * n, 80) for n in range(10)], "mpegts")]
    parts.append(written([(2000 + 100 * n, 160) for n in range(10)], "mpegts", (96, 48)))
    with open_document(b"".join(parts), frames=4) as document:
        assert [page.read().size for page in document.pages()] == [(64, 48), (64, 48), (96, 48), (96, 48)]


def test_a_video_without_frames() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    data = file.getvalue()
    with pytest.raises(ImageFormatError, match="has no pictures"):
        open_document(data)


# ---- what moves


def test_frames_in_which_nothing_moves_are_left_out() -> None:
    pictures = [np.full((48, 64, 3), 100, np.uint8) for _ in range(6)]
    for number in (2, 3, 4, 5):
        pictures[number][8:24, 8:24] = 250
    pictures[5][40:, 56:] = 0
    data = lossless([*pictures])
    with open_document(data, fps=2, changes=True) as document:
        assert [page.time for page in document.pages()] == [0.0, 1.0, 2.5]
        assert np.array_equal(document.read(3).pixels, pictures[5])
        assert np.array_equal(document.read(1).pixels, pictures[0])  # back to the beginning
        assert np.array_equal(document.read(2).pixels, pictures[2])
    with open_document(data, frames=6, changes=True) as document:
        assert len(document) == 3
    with open_document(data, changes=True) as document:
        assert [page.time for page in document.pages()] == [0.0, 1.0]


def test_one_video_with_and_without_changes_in_a_request() -> None:
    data = lossless([np.full((48, 64, 3), 100, np.uint8)] * 4)
    parts = [{"type": "file", "image": data, "fps": 2}, {"type": "file", "image": data, "fps": 2, "changes": True}]
    request = ChatRequest.parse([{"role": "user", "content": parts}])

    def open_one(part: FilePart, param: str, limits: DocumentLimits) -> Document:
        return open_part(part, param, limits, 10_000)

    with expanded(request, open_one, lambda _: printed_size, DocumentLimits()) as whole:
        pages = [page_of(part) for part in whole.request.messages[0].content or () if isinstance(part, ImagePart)]
        assert [page and page.page.label for page in pages] == ["0:00.0", "0:00.5", "0:01.0", "0:01.5", "0:00.0"]


def test_comparing_takes_time_of_the_request() -> None:
    limits = DocumentLimits(request_seconds=0.001)
    with pytest.raises(ImageTooLargeError, match=r"comparing its frames takes more than 0\.001 s; compare fewer"):
        open_document(video(20), fps=10, changes=True, limits=limits)


def test_comparing_takes_what_the_request_has_left() -> None:
    data = video(4)
    parts = [{"type": "file", "image": bytes(bytearray(data)), "changes": True} for _ in range(2)]
    left: list[float] = []

    def open_one(part: FilePart, param: str, limits: DocumentLimits) -> Document:
        left.append(limits.request_seconds)
        return open_part(part, param, limits, 10_000)

    request = ChatRequest.parse([{"role": "user", "content": parts}])
    with expanded(request, open_one, lambda _: printed_size, DocumentLimits(request_seconds=100)):
        assert left[0] == 100 and 0 < left[1] < 99.99  # starting the decoder of the first has taken longer


def test_comparing_ends_when_the_file_is_not_wanted_any_more() -> None:
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) == 3:
            raise GenerationCancelledError

    part = FilePart.model_validate({"type": "file", "image": video(20), "fps": 10, "changes": True})
    with pytest.raises(GenerationCancelledError):
        open_part(part, "messages.0.content.0", DocumentLimits(), 10_000, check=check)
    assert len(checks) == 3


def test_an_error_names_the_part_that_shows_the_frame() -> None:
    with open_document(video(4)) as document:
        view = document.view("messages.0.content.1.image")
    with pytest.raises(ImageFormatError, match="the document is closed") as caught:
        view.read(1)
    assert caught.value.param == "messages.0.content.1.image"


def test_still_parts_keep_their_pixels() -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    blocks = StillBlocks()
    assert blocks.show(first, 0)
    noisy = np.clip(first.astype(int) + rng.integers(-3, 4, first.shape), 0, 255).astype(np.uint8)
    assert not blocks.show(noisy, 1)
    noisy[:20, :20] = 255 - noisy[:20, :20]
    assert blocks.show(noisy, 2) and blocks.picture is not None
    assert np.array_equal(blocks.picture[24:], first[24:]) and np.array_equal(blocks.picture[:20, :20], noisy[:20, :20])
    assert blocks.show(rng.integers(0, 256, first.shape, dtype=np.uint8), 3)
    assert blocks.show(first[:40], 4) and blocks.picture.shape == (40, 70, 3)
    assert blocks.times == [0, 2, 3, 4]


def test_slow_changes_are_seen_in_the_end() -> None:
    blocks = StillBlocks()
    moves = [blocks.show(np.full((16, 16, 3), 100 + number, np.uint8), number) for number in range(30)]
    assert 2 <= sum(moves) <= 5
