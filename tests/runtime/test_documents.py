"""Files of several pictures: their pages, what a viewer would show of them, and what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pdfs import pdf, rectangle, text
from pocketvlm.documents import expand
from pocketvlm.documents.document import Document
from pocketvlm.documents.expand import expanded, page_of
from pocketvlm.documents.fit import fit_for, printed_size, resolution
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.open_document import open_document, open_part
from pocketvlm.documents.pdf import PdfDocument
from pocketvlm.documents.selection import PageSelection
from pocketvlm.errors import ImageError, ImageFormatError, ImageTooLargeError, PasswordError, RequestError
from pocketvlm.messages import ChatRequest, FilePart, ImagePart
from pocketvlm.vision import families

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")


def colours(document: Document, *places: tuple[float, float], page: int = 1) -> list[tuple[int, ...]]:
    """Return the colours of a page at places, which are shares of width and height from the top left."""
    pixels = document.read(page, lambda points: (round(points[0]), round(points[1]))).pixels
    height, width, _ = pixels.shape
    return [tuple(pixels[int(y * height), int(x * width)].tolist()) for x, y in places]


def refusal(make: Callable[[], Any], kind: type[Exception] = ImageFormatError) -> str:
    with pytest.raises(kind) as caught:
        make()
    assert type(caught.value) is kind
    return str(caught.value)


# ---- which pages


@pytest.mark.parametrize(
    ("selected", "numbers"),
    [("3", [3]), ("1-3,7", [1, 2, 3, 7]), (" 2 , 9 - 10 ", [2, 9, 10]), ("8-", [8, 9, 10]), ("7,1-3", [7, 1, 2, 3])],
)
def test_selected_pages(selected: str, numbers: list[int]) -> None:
    assert [*PageSelection.parse(selected).numbers(10)] == numbers


def test_each_page_is_selected_once() -> None:
    assert [*PageSelection.parse("1-3,2-4,1").numbers(9)] == [1, 2, 3, 4]


@pytest.mark.parametrize("selected", ["", "0", "-3", "3-1", "a", "1,,2", "1.5", "1-2-3", "9" * 400, "1," * 2000 + "1"])
def test_what_is_not_a_selection(selected: str) -> None:
    with pytest.raises(RequestError) as caught:
        PageSelection.parse(selected, "--pages")
    assert caught.value.param == "--pages" and len(str(caught.value)) < 400


def test_a_page_that_is_not_there() -> None:
    with open_document(pdf([b""] * 3)) as document:
        assert "there is no page 12; it has 3" in refusal(lambda: [*document.pages("1-12")], ImageError)


# ---- PDF


def test_pages_in_order_with_labels() -> None:
    with open_document(pdf([rectangle("1 0 0", 0, 0, 200, 100), rectangle("0 0 1", 0, 0, 200, 100)])) as document:
        assert len(document) == 2
        assert [page.label for page in document.pages()] == ["page 1 of 2", "page 2 of 2"]
        assert colours(document, (0.5, 0.5), page=2) == [BLUE]
        assert colours(document, (0.5, 0.5), page=1) == [RED]
        assert [page.read().pages for page in document.pages("2")] == [2]


def test_a_page_is_drawn_at_the_size_that_is_asked_for() -> None:
    with open_document(pdf([rectangle("1 0 0", 0, 0, 100, 100)])) as document:
        asked: list[tuple[float, float]] = []

        def fit(points: tuple[float, float]) -> tuple[int, int]:
            asked.append(points)
            return 97, 211  # no multiple of four bytes a row; out of proportion

        picture = document.read(1, fit)
        assert asked == [(200, 100)] and picture.size == (97, 211)
        assert (picture.pixels[:, :48] == RED).all() and (picture.pixels[:, 49:] == WHITE).all()
        assert document.read(1).size == (416, 208)  # 150 dpi


def test_as_a_viewer_shows_it() -> None:
    """Upright, within the crop box, on white, with what is half transparent, annotations and filled forms."""
    left = rectangle("1 0 0", 0, 0, 100, 100)
    with open_document(pdf([left], extra="/Rotate 90")) as document:
        assert document.read(1, printed_size).size == (208, 416)
        assert colours(document, (0.5, 0.25), (0.5, 0.75)) == [RED, WHITE]
    with open_document(pdf([left], extra="/CropBox [50 0 150 100]")) as document:
        assert document.read(1, printed_size).size == (208, 208)
        assert colours(document, (0.25, 0.5), (0.75, 0.5)) == [RED, WHITE]
    half = b"/Half gs " + left
    with open_document(
        pdf([half], extra="/Resources << /ExtGState << /Half << /ca 0.5 >> >> >>").replace(
            b"/Resources << /Font << /F1 3 0 R >> >>", b"", 1
        )
    ) as document:
        [(red, green, blue), _] = colours(document, (0.25, 0.5), (0.75, 0.5))
        assert red == 255 and green == blue and 120 <= green <= 136
    look = (
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 50 50] /Length 25 >> stream\n0 1 0 rg 0 0 50 50 re f  \nendstream"
    )
    stamp = b"<< /Type /Annot /Subtype /Stamp /Rect [0 0 50 50] /F 4 /AP << /N 901 0 R >> >>"
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (x) /Rect [150 50 200 100] /F 4 /AP << /N 901 0 R >> >>"
    )
    with open_document(
        pdf(
            [left],
            extra="/Annots [900 0 R 902 0 R]",
            objects={900: stamp, 901: look, 902: field},
            catalog="/AcroForm << /Fields [902 0 R] >>",
        )
    ) as document:
        assert colours(document, (0.1, 0.9), (0.9, 0.1), (0.25, 0.25)) == [GREEN, GREEN, RED]


def test_scripts_and_remote_references_are_ignored(tmp_path: Path) -> None:
    """A script that turns the page, a command, addresses to go to, and data of a stream that is elsewhere."""
    trap, other = tmp_path / "trap", tmp_path / "other"
    other.write_bytes(rectangle("0 1 0", 0, 0, 200, 100))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        actions = (
            "/OpenAction << /S /JavaScript /JS (this.setPageRotations\\(0, 0, 90\\)) "
            f"/Next << /S /Launch /F (touch {trap}) /Next << /S /URI /URI ({address}) "
            f"/Next << /S /SubmitForm /F << /FS /URL /F ({address}) >> /Next << /S /GoToR /F ({other}) /D [0 /Fit] >> "
            ">> >> >> >>"
        )
        remote = f"<< /Length 0 /F << /FS /URL /F ({address}) >> >> stream\n\nendstream".encode()
        local = f"<< /Length 0 /F ({other}) >> stream\n\nendstream".encode()
        for objects in ({}, {900: remote}, {900: local}):
            extra = "/Contents [11 0 R 900 0 R] " if objects else ""
            data = pdf([rectangle("1 0 0", 0, 0, 100, 100)], catalog=actions, extra=extra, objects=objects)
            data = data.replace(b"/Contents 11 0 R", b"") if objects else data
            with open_document(data) as document:
                assert colours(document, (0.25, 0.5), (0.75, 0.5)) == [RED, WHITE]
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not trap.exists()


def test_a_path_bytes_and_a_data_uri_are_the_same(tmp_path: Path) -> None:
    data = pdf([text("same")])
    (tmp_path / "a.pdf").write_bytes(data)
    import base64

    digests = set()
    sources = (tmp_path / "a.pdf", str(tmp_path / "a.pdf"), data, b"\xef\xbb\xbf\n" + data)
    uri = "data:application/pdf;base64," + base64.b64encode(data).decode()
    for source in (*sources, uri):
        with open_document(source) as document:
            digests.add(document.read(1).digest)
    assert len(digests) == 1


def test_a_scan_keeps_its_pixels() -> None:
    """Of Pillow's producer: a page of pixels, drawn at their number, is these pixels."""
    scan = Image.fromarray(np.random.default_rng(0).integers(0, 2, (120, 90), np.uint8) * 255).convert("L")
    file = io.BytesIO()
    scan.save(file, "PDF", resolution=72, save_all=True, append_images=[scan.transpose(Image.Transpose.ROTATE_180)])
    with open_document(file.getvalue()) as document:
        first, second = (document.read(number, lambda _: scan.size).pixels[..., 0] for number in (1, 2))
        assert np.corrcoef(first.ravel(), np.asarray(scan).ravel())[0, 1] > 0.95  # Pillow writes JPEG
        assert np.corrcoef(second[::-1, ::-1].ravel(), np.asarray(scan).ravel())[0, 1] > 0.95


# ---- PDF: what is refused


def test_an_encrypted_file() -> None:
    data = pdf([rectangle("1 0 0", 0, 0, 200, 100)], password="secret")
    assert "is encrypted; give its password" in refusal(lambda: open_document(data), PasswordError)
    assert "the password is wrong" in refusal(lambda: open_document(data, password="Secret"), PasswordError)
    with open_document(data, password="secret") as document:
        assert colours(document, (0.5, 0.5)) == [RED]


def test_files_that_are_damaged_or_empty(tmp_path: Path) -> None:
    whole = pdf([text("x")] * 3)
    for name, data, reason in (
        ("junk.pdf", b"%PDF-1.7\n" + b"junk " * 200, "damaged or truncated, or without pages"),
        ("none.pdf", pdf([]), "damaged or truncated, or without pages"),
        ("picture.pdf", b"not a PDF", "is not a picture of a supported format"),
        ("empty.pdf", b"", "is empty"),
    ):
        (tmp_path / name).write_bytes(data)
        message = refusal(lambda name=name: open_document(tmp_path / name))  # type: ignore[misc]
        assert name in message and reason in message
    with open_document(whole[: whole.index(b"startxref")]) as document:  # PDFium finds the objects again
        assert len(document) == 3


def test_a_page_that_fails_does_not_lose_the_others() -> None:
    data = pdf([rectangle("1 0 0", 0, 0, 200, 100)] * 3).replace(
        b"12 0 obj\n<< /Type /Page ", b"12 0 obj\n[ /Type /Page  "
    )
    with open_document(data) as document:
        pages = [*document.pages()]
        assert colours(document, (0.5, 0.5), page=1) == [RED]
        with pytest.raises(ImageFormatError, match="page 2"):
            pages[1].read()
        assert colours(document, (0.5, 0.5), page=3) == [RED]


@pytest.mark.parametrize(("box", "reason"), [("[0 0 28346 500]", r"10\.0 x 0\.2 m is too large"), ("[0 0 0 0]", "")])
def test_pages_of_impossible_size(box: str, reason: str) -> None:
    with open_document(pdf([b""], box=box)) as document:
        if reason:
            with pytest.raises(ImageTooLargeError, match=f"page 1: {reason}"):
                document.read(1)
        else:  # PDFium takes a letter's size
            assert document.read(1).size == (1275, 1650)


def test_a_large_page_is_drawn_within_the_limit_of_pixels() -> None:
    with open_document(pdf([b""], box="[0 0 14000 14000]")) as document:
        picture = document.read(1, fit_for(None, "high", None, 1_000_000))
        assert picture.size == (1000, 1000)
        assert picture.notes == ("page 1 of 1 is seen at 5 dpi, at which small print cannot be read",)


@POSIX
def test_a_process_that_was_killed_starts_again() -> None:
    with open_document(pdf([rectangle("1 0 0", 0, 0, 200, 100)] * 2)) as document:
        assert isinstance(document, PdfDocument)
        for _ in range(2):
            process = document._process._process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with pytest.raises(ImageFormatError, match="page 2: cannot be drawn: it is damaged, or takes more than"):
                document.read(2)
            assert colours(document, (0.5, 0.5), page=2) == [RED]


@POSIX
def test_a_page_that_takes_too_long() -> None:
    slow = b"".join(rectangle(f"{x % 7 / 7} 0 0", 0, 0, 200, 100) for x in range(100_000))
    with open_document(pdf([slow, rectangle("1 0 0", 0, 0, 200, 100)]), limits=DocumentLimits(seconds=0.5)) as document:
        with pytest.raises(ImageFormatError, match=r"page 1: cannot be drawn: it takes more than 0\.5 s"):
            document.read(1, lambda _: (3000, 3000))
        assert colours(document, (0.5, 0.5), page=2) == [RED]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_page_that_takes_too_much_memory() -> None:
    limits = DocumentLimits(memory=256 << 20)
    with open_document(pdf([rectangle("1 0 0", 0, 0, 200, 100)]), limits=limits) as document:
        with pytest.raises(ImageFormatError, match="page 1: "):
            document.read(1, lambda _: (12_000, 12_000))  # 412 MiB
        assert colours(document, (0.5, 0.5)) == [RED]


def test_closing_ends_the_process() -> None:
    document = open_document(pdf([text("x")]))
    assert isinstance(document, PdfDocument)
    process = document._process._process
    assert process is not None and process.poll() is None
    document.close()
    document.close()
    assert process.poll() is not None
    with pytest.raises(ImageError, match="the document is closed"):
        document.read(1)


def test_limits() -> None:
    for wrong in ({"pages": 0}, {"seconds": 0}, {"seconds": float("inf")}, {"memory": 1}, {"request_seconds": -1}):
        with pytest.raises(RequestError) as caught:
            DocumentLimits(**wrong)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(wrong))


# ---- the right pixels

PROJECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "square": ("gemma3", {"image_size": 896, "patch_size": 14, "projector.scale_factor": 4}),
    "dynamic": ("qwen2.5vl_merger", {"patch_size": 14, "spatial_merge_size": 2}),
    "tiles": (
        "idefics3",
        {"image_size": 512, "patch_size": 16, "projector.scale_factor": 4, "preproc_image_size": 2048},
    ),
    "grid": ("internvl", {"image_size": 448, "patch_size": 14, "projector.scale_factor": 2}),
    "canvas": (
        "mlp",
        {"image_size": 336, "patch_size": 14, "image_grid_pinpoints": [336, 672, 672, 336, 672, 672, 1008, 336]},
    ),
}


@pytest.mark.parametrize("name", PROJECTORS)
@pytest.mark.parametrize("detail", ["auto", "high"])
@pytest.mark.parametrize("points", [(595, 842), (842, 595), (612, 792), (960, 540), (226, 800)])
def test_a_page_is_not_resized_after_it_was_drawn(name: str, detail: Any, points: tuple[float, float]) -> None:
    kind, values = PROJECTORS[name]
    found = families.find(
        {"clip.projector_type": kind} | {f"clip.vision.{key}": value for key, value in values.items()}
    )
    assert found is not None
    family = found[1]
    wanted = family.plan(printed_size(points, 300 if detail == "high" else 150), detail, None)
    size = fit_for(family, detail, None)(points)
    plan = family.plan(size, detail, None)
    assert size == plan.used == wanted.used and plan.layout == wanted.layout
    assert resolution(points, size) > 20


@pytest.mark.parametrize("kind", ["BILINEAR", "BICUBIC", "LANCZOS"])
def test_a_page_drawn_at_its_size_is_sharper_than_one_that_was_shrunk(kind: str) -> None:
    """By the 10-90 % rise distance of a slanted edge (ISO 12233), in pixels of what the model sees."""
    edge = b"0.8 g 0 0 595 842 re f 0.2 g 0 0 m 261 0 l 334 842 l 0 842 l f"
    with open_document(pdf([edge], box="[0 0 595 842]")) as document:
        size = 744, 1052

        def drawn(dpi: int) -> Image.Image:
            return Image.fromarray(document.read(1, lambda points: printed_size(points, dpi)).pixels)

        direct = rise(Image.fromarray(document.read(1, lambda _: size).pixels))
        assert 0.5 < direct < 0.85
        for dpi in (150, 300):
            assert rise(drawn(dpi).resize(size, Image.Resampling[kind])) > 1.1 * direct


def rise(image: Image.Image) -> float:
    """Return over how many pixels an edge that is 5 degrees from upright rises from 10 to 90 %."""
    rows = (np.asarray(image.convert("L"), np.float64)[300:700] - 51) / 153
    number = np.arange(len(rows))
    slope, start = np.polyfit(number, (1 - rows).sum(1), 1)
    places = (np.arange(image.width)[None] + 0.5 - slope * number[:, None] - start) * np.cos(np.arctan(slope))
    near = np.abs(places) < 4
    steps = np.round(16 * places[near]).astype(int) + 64
    profile = np.bincount(steps, rows[near]) / np.bincount(steps)
    return float(np.argmax(profile > 0.9) - np.argmax(profile > 0.1)) / 16


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("producer", ["text", "scans"])
def test_a_long_document_takes_little_more_memory_than_one_page(producer: str) -> None:
    """Of this process and the decoder together, while 300 pages are read one after the other."""
    if producer == "text":
        line = b" ".join(text(f"Line {n} of a page, with {37 * n} words", 9, (40, 11 * n)) for n in range(70))
        data = pdf([text(f"Page {n}", 20, (300, 800)) + b" " + line for n in range(300)], box="[0 0 595 842]")
    else:
        noise = np.random.default_rng(0).integers(0, 256, (585, 413, 3), np.uint8)
        scans = (Image.fromarray(np.roll(noise, n, 0)).resize((827, 1169)) for n in range(300))
        file = io.BytesIO()
        next(scans).save(file, "PDF", resolution=100, save_all=True, append_images=scans)
        data = file.getvalue()
    with open_document(data) as document:
        assert isinstance(document, PdfDocument) and len(document) == 300

        def used() -> int:
            process = document._process._process
            assert process is not None
            return sum(resident(number) for number in (os.getpid(), process.pid))

        document.read(1)
        first, most = used(), 0
        for page in document.pages("2-"):
            page.read()
            most = max(most, used())
    assert most - first < 150 << 20, f"{(most - first) >> 20} MB more"


def resident(process: int) -> int:
    """Return the bytes of a process that are in memory."""
    return int(Path(f"/proc/{process}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_thousands_of_pages() -> None:
    with open_document(pdf([rectangle("1 0 0", 0, 0, 200, 100)] * 5000)) as document:
        assert len(document) == 5000 and colours(document, (0.5, 0.5), page=4999) == [RED]


# ---- pictures in formats of Pillow


def test_the_pixels_of_a_fax_are_squared() -> None:
    """204 dots per inch across, 98 down, as fax machines scan; other pictures keep their pixels."""
    page = Image.new("1", (204, 98), 1)
    page.paste(0, (0, 0, 102, 98))
    for compression, orientation, size in (
        ("group4", 1, (204, 204)),
        ("group4", 6, (204, 204)),
        ("tiff_deflate", 1, (204, 98)),
    ):
        file = io.BytesIO()
        tags = {274: orientation}
        page.save(
            file, "TIFF", compression=compression, dpi=(204, 98), tiffinfo=tags, save_all=True, append_images=[page]
        )
        with open_document(file.getvalue()) as document:
            picture = document.read(2)
            assert picture.size == size
            dark = picture.pixels[: size[1] // 2 - 2] if orientation == 6 else picture.pixels[:, : size[0] // 2 - 2]
            assert dark.max() == 0 and picture.pixels.mean() > 120


def stills(count: int = 12) -> list[Image.Image]:
    pictures = []
    for number in range(count):
        picture = Image.new("RGB", (96, 64), "white")
        ImageDraw.Draw(picture).rectangle((number * 8, 0, number * 8 + 7, 63), fill="black")
        pictures.append(picture)
    return pictures


def saved(format: str, **options: Any) -> bytes:
    first, *others = stills()
    file = io.BytesIO()
    first.save(file, format, save_all=True, append_images=others, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "options", "unit"),
    [
        ("TIFF", {"compression": "tiff_deflate"}, "page"),
        ("GIF", {"duration": 100, "disposal": 2}, "frame"),
        ("WEBP", {"duration": 100, "lossless": True}, "frame"),
        ("PNG", {"duration": 100, "disposal": 0}, "frame"),
    ],
)
def test_pictures_of_one_file(format: str, options: dict[str, Any], unit: str) -> None:
    with open_document(saved(format, **options)) as document:
        assert len(document) == 12
        for numbers in ("1-", "7,3,11"):
            for page in document.pages(numbers):
                time = f"0:0{(page.number - 1) / 10:.1f}"
                assert page.label == (time if unit == "frame" else f"page {page.number} of 12")
                picture = page.read()
                dark = np.flatnonzero(picture.pixels[32, :, 0] < 128)
                assert picture.size == (96, 64) and picture.pages == 12
                assert [dark[0], dark[-1]] == [page.number * 8 - 8, page.number * 8 - 1], page.label


def test_frames_of_a_gif_are_counted_as_pillow_does() -> None:
    sound = saved("GIF", duration=100, disposal=2, comment=b"by hand " * 99)
    cut = [sound[: len(sound) * share // 9] for share in range(2, 9)]
    odd = [sound.replace(b"\0!\xf9", b"\0\0\0x!\xf9"), sound[:-1], sound + sound]
    # Pillow reads on behind the end of an empty extension, so the frame behind it is lost.
    last = sound.rindex(b"!\xf9")
    odd.append(sound[:last] + b"!\xf9\0" + sound[last:])
    for data in (sound, *cut, *odd):
        with Image.open(io.BytesIO(data)) as image, open_document(data) as document:
            assert len(document) == image.n_frames  # type: ignore[attr-defined]


def test_frames_far_into_an_animation_are_refused() -> None:
    """Pillow decodes all before them. The pages of other formats stand alone."""
    animation = saved("GIF", duration=100, disposal=2)
    first, *others = (Image.new("L", (96, 64), 6 * number) for number in range(40))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=100, disposal=2)
    with open_document(file.getvalue(), max_pixels=96 * 64) as document:
        assert document.read(32).size == (96, 64)
        assert "frame 33: is too far from the first" in refusal(lambda: document.read(33), ImageTooLargeError)
    with open_document(animation) as document:
        document._count = 20_000  # more are not opened
        assert "at most 10,000" in refusal(lambda: document.read(10_001), ImageTooLargeError)
    with open_document(saved("TIFF"), max_pixels=96 * 64) as document:
        assert document.read(12).size == (96, 64)


# ---- the files of a request


def reading(files: int, limits: DocumentLimits, data: bytes, **options: Any) -> Callable[[], None]:
    """Return what reads all pages of a request of some files."""
    parts = [{"type": "file", "image": bytes(bytearray(data)), **options} for _ in range(files)]
    request = ChatRequest.parse([{"role": "user", "content": parts}])

    def read_all() -> None:
        def open_one(one: FilePart, param: str, limits: DocumentLimits) -> Document:
            return open_part(one, param, limits, 10_000)

        with expanded(request, open_one, lambda _: printed_size, limits) as whole:
            for part in whole.request.messages[0].content or ():
                if isinstance(part, ImagePart) and (page := page_of(part)):
                    page.read()

    return read_all


def test_the_files_of_a_request_are_counted() -> None:
    data = saved("GIF", duration=100, disposal=2)
    reading(16, DocumentLimits(), data, pages="1")()
    with pytest.raises(ImageTooLargeError, match="at most 16 files") as caught:
        reading(17, DocumentLimits(), data, pages="1")()
    assert caught.value.param == "messages.0.content.16.image"


@pytest.mark.parametrize("order", [range(6), (0, 5, 1, 5, 0)])
def test_few_decoders_run_at_a_time(order: Iterable[int]) -> None:
    """Those of other files start again when their pages are read."""
    shades = [rectangle(f"0 0 {number / 5}", 0, 0, 200, 100) for number in range(6)]
    content = [{"type": "file", "image": pdf([shade])} for shade in shades]
    request = ChatRequest.parse([{"role": "user", "content": content}])
    limits = DocumentLimits()

    def open_one(part: FilePart, param: str, limits: DocumentLimits) -> Document:
        return open_part(part, param, limits, 10_000)

    def running() -> int:
        documents = [page.page.document for page in pages]
        return sum(one._process._process is not None for one in documents if isinstance(one, PdfDocument))

    with expanded(request, open_one, lambda _: lambda _: (4, 2), limits) as whole:
        parts = whole.request.messages[0].content or ()
        pages = [page for part in parts if isinstance(part, ImagePart) and (page := page_of(part))]
        assert len(pages) == 6 and running() == expand._MAX_AWAKE == 4
        for number in order:
            assert pages[number].measure() == (4, 2)
            assert pages[number].read().pixels[0, 0].tolist() == [0, 0, 51 * number]
            assert running() == 4


def test_a_file_whose_pages_are_named_is_opened_once() -> None:
    data, opened = saved("GIF", duration=100, disposal=2), []
    parts = [{"type": "file", "image": data, "pages": number} for number in (*range(1, 13), *range(1, 12), 13)]

    def open_one(one: FilePart, param: str, limits: DocumentLimits) -> Document:
        opened.append(param)
        return open_part(one, param, limits, 10_000)

    for count, refused in ((23, False), (24, True)):
        request = ChatRequest.parse([{"role": "user", "content": parts[:count]}])
        with contextlib.ExitStack() as stack:
            if refused:
                caught = stack.enter_context(pytest.raises(ImageError, match="there is no page 13"))
            stack.enter_context(expanded(request, open_one, lambda _: printed_size, DocumentLimits()))
    assert caught.value.param == "messages.0.content.23.image"
    assert opened == ["messages.0.content.0"] * 2


def test_opening_files_takes_time_of_the_request() -> None:
    limits = DocumentLimits(request_seconds=0.01)  # a decoder's process takes longer to start
    with pytest.raises(ImageTooLargeError, match=r"may take 0\.01 s to decode") as caught:
        reading(2, limits, pdf([b""]))()
    assert caught.value.param == "messages.0.content.1.image"


def test_the_memory_of_pages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "_MAX_KEPT", 3 * 96 * 64 * 3)
    reading(3, DocumentLimits(), saved("GIF", duration=100, disposal=2), pages="1")()
    with pytest.raises(ImageTooLargeError, match=r"0:00\.3: the pages of a request may take"):
        reading(1, DocumentLimits(), saved("GIF", duration=100, disposal=2))()


def test_pictures_of_an_mpo_file() -> None:
    """Of three: Pillow writes the places of more wrongly."""
    first, *others = stills(3)
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=others, quality=95)
    with open_document(b"\n" + file.getvalue()) as document:
        for number in (1, 3, 2):
            dark = np.flatnonzero(document.read(number).pixels[32, :, 0] < 128)
            assert [dark[0], dark[-1]] == [number * 8 - 8, number * 8 - 1]


def test_pictures_of_a_heic_collection() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    collection = pillow_heif.HeifFile()
    for shade in (0, 128, 255):
        collection.add_frombytes("RGB", (64, 64), bytes([shade]) * (64 * 64 * 3))
    file = io.BytesIO()
    collection.save(file, quality=90)
    with open_document(file.getvalue()) as document:
        means = [page.read().pixels.mean() for page in document.pages()]
        assert np.allclose(means, [0, 128, 255], atol=4)


def test_one_picture_is_a_document_of_one_page() -> None:
    file = io.BytesIO()
    stills()[0].save(file, "PNG")
    with open_document(file.getvalue()) as document:
        assert len(document) == 1 and [page.label for page in document.pages()] == ["page 1 of 1"]


def test_a_damaged_page_names_itself() -> None:
    data = saved("TIFF", compression="tiff_deflate")
    with open_document(data) as document:
        whole = document.read(12).digest
    places = [place for place in range(len(data)) if data[place : place + 2] in (b"\x78\x9c", b"\x78\xda")]
    broken = bytearray(data)
    broken[places[4] + 2 : places[4] + 12] = b"\xff" * 10
    with open_document(bytes(broken)) as document:
        with pytest.raises(ImageFormatError, match="bytes: page 5: damaged"):
            document.read(5)
        assert document.read(12).digest == whole
