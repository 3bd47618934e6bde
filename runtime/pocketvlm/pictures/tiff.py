"""Open TIFF files: choose the picture among the pages, and the reader for its kind.

Pillow reads common kinds. It reads others wrongly or not at all, and those are read by `tiff_samples`, or refused by
name. Of a camera's raw file the preview is read. Tags: TIFF 6.0; Adobe PageMaker 6.0 TIFF Technical Notes; BigTIFF.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, TYPE_CHECKING

from pocketvlm.pictures.opened import Opened, UnsupportedKindError, splice

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_ENTRIES = 200_000  # of all directories that are looked at; a page has about 15
_MAX_PAGES = 10_000
_MAX_VALUES = 1 << 21  # of one tag: the places of strips or tiles
_MAX_SAMPLES = 1024

_BYTES = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "zstd"}
_PREDICTED = (5, 8, 32946, 34925, 50000)  # compressions with which libtiff undoes predictors
_FAX = (2, 3, 4)
_ORIENTATION = 0x0112
_SUB_DIRECTORIES = 330
_MAX_SUB_DIRECTORIES = 32  # a raw file has up to five
_MAX_SUB_ENTRIES = 10_000
_MAX_STRETCH = 4  # times; more is a fault of the file
_OLD_JPEG, _JPEG, _WORDS, _THUNDERSCAN = 6, 7, 32771, 32809
_OTHERS = {
    9: "JBIG", 10: "JBIG", 34661: "JBIG", 32908: "PixarFilm", 32909: "PixarLog", 34676: "SGI Log", 34677: "SGI Log",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy DNG", 34933: "PNG",
    34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, _MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, _MASK: 1, CMYK: 4, YCBCR: 3, LAB: 3}
_INTERPRETATIONS = {
    9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "raw data of a camera", 32844: "LogL", 32845: "LogLuv",
    34892: "raw data of a camera", 51177: "a depth map", 52527: "a semantic mask",
}  # fmt: skip


@dataclass(frozen=True)
class TiffPage:
    """How the samples of a picture are stored. Sizes are in pixels.

    `format` is 1 for unsigned integers, 2 for signed ones, 3 for floats. `samples` of `bits` each make a pixel; the
    first `colours` are what `interpretation` says, `extra` says what the others are. `planar`: each sample has a
    plane of its own. A chunk is a strip or a tile.
    """

    order: str  # "<" or ">"
    width: int
    height: int
    bits: int
    format: int
    samples: int
    interpretation: int
    extra: tuple[int, ...]
    planar: bool
    compression: int
    predictor: int
    reversed_bits: bool
    tiled: bool
    chunk_size: tuple[int, int]  # width, height
    offsets: tuple[int, ...]
    counts: tuple[int, ...]  # bytes; empty if the file does not say
    colour_map: tuple[int, ...]
    orientation: int

    @property
    def colours(self) -> int:
        return _COLOURS[self.interpretation]

    @property
    def inverted(self) -> bool:
        return self.interpretation == _WHITE_IS_ZERO

    @property
    def alpha(self) -> int | None:
        """The number of the sample that says how opaque a pixel is."""
        return next((self.colours + place for place, kind in enumerate(self.extra) if kind in (1, 2)), None)

    @property
    def premultiplied(self) -> bool:
        return next((kind == 1 for kind in self.extra if kind in (1, 2)), False)


def open_tiff(file: IO[bytes]) -> Opened:
    """Open the file. Raises UnsupportedKindError, or errors of any kind for a damaged file."""
    header = file.read(16)
    order, big = "<" if header.startswith(b"II") else ">", 43 in header[2:4]
    [first] = struct.unpack_from(f"{order}{'Q' if big else 'I'}", header, 8 if big else 4)
    directories = [*_directories(file, order, big, first)]
    if (raw := _raw_preview(file, header, big, directories)) is not None:
        return raw
    preview: Directory | None = None
    pages: list[Directory] = []
    for directory in directories:
        if directory.is_mask:
            continue
        if directory.is_reduced:
            preview = preview or directory
            continue
        pages.append(directory)
    notes = []
    if not pages and preview is not None:
        pages = [preview]
        notes.append("the file names a small preview only, which was read")
    if not pages:
        raise ValueError("it has no picture")

    def select(number: int) -> Opened:
        opened = _open_page(file, pages[number], first, header[: 8 if big else 4])
        opened.pages = len(pages)
        return opened

    opened = select(0)
    opened.notes[:0] = notes
    opened.count, opened.select = lambda: len(pages), select
    return opened


def _raw_preview(file: IO[bytes], header: bytes, big: bool, directories: list[Directory]) -> Opened | None:
    """Return the preview in a camera's raw file; None for other files, and where there is none."""
    from pocketvlm.pictures.raw_preview import is_raw, open_preview

    every = [*directories, *islice(_sub_directories(file, big, directories), _MAX_SUB_DIRECTORIES)]
    return open_preview(file, every) if is_raw(header, every) else None


def _sub_directories(file: IO[bytes], big: bool, directories: list[Directory]) -> Iterator[Directory]:
    entries = 0
    for directory in directories:
        with suppress(ValueError, struct.error):  # other files may be sound without their subdirectories
            for offset in directory.values(_SUB_DIRECTORIES)[:_MAX_SUB_DIRECTORIES]:
                for sub_directory in _directories(file, directory.order, big, offset):
                    yield sub_directory
                    entries += len(sub_directory.entries)
                    if entries > _MAX_SUB_ENTRIES:
                        return


def _open_page(file: IO[bytes], directory: Directory, first: int, head: bytes) -> Opened:
    """Open one page. `first` is the place of the first directory, `head` is what stands before its field."""
    page, notes = directory.page(), list[str]()
    if _pillow_reads(page, len(head) == 8):
        image = _pillow_image(file, directory, first, head)
        square = _square_size(page, directory)

        def load() -> Image.Image:
            image.load()
            if square == (page.width, page.height):
                return image
            orientation = image.getexif().get(_ORIENTATION, 1)
            turned = page.orientation >= 5 and orientation == 1  # Pillow has applied it
            stretched = image.convert("L").resize(square[::-1] if turned else square)
            stretched.getexif()[_ORIENTATION] = orientation
            return stretched

        return Opened(square, load, notes=notes, orientation=lambda: page.orientation)
    from pocketvlm.pictures.tiff_samples import read_samples

    if len(page.extra) > 1 or (page.extra == (0,) and page.colours == 1):
        read = {1: "the first was", 3: "the first three were", 4: "the first four were"}[page.colours]
        notes.append(f"it has {page.samples} bands, of which {read} read")
    size = page.width, page.height
    return Opened(size, partial(read_samples, file, page), notes=notes, orientation=lambda: page.orientation)


def _square_size(page: TiffPage, directory: Directory) -> tuple[int, int]:
    """Return the size of a fax with square pixels: many machines scan 204 dots per inch across and 98 down."""
    across, down = directory.rational(282), directory.rational(283)
    if page.compression not in _FAX or not (across and down and 1 / _MAX_STRETCH <= across / down <= _MAX_STRETCH):
        return page.width, page.height
    ratio = across / down
    return round(page.width * max(1, 1 / ratio)), round(page.height * max(1, ratio))


def _pillow_image(file: IO[bytes], directory: Directory, first: int, head: bytes) -> TiffImageFile:
    from PIL.TiffImagePlugin import TiffImageFile

    file.seek(0)
    if directory.offset == first:
        return TiffImageFile(file)
    place = struct.pack(f"{directory.order}{'Q' if len(head) == 8 else 'I'}", directory.offset)
    end = file.seek(0, io.SEEK_END)
    return TiffImageFile(splice(file, [head + place, range(2 * len(head), end)]))


# ---- directories


@dataclass(frozen=True)
class Directory:
    """The entries of a directory: (type, number of values, the field that has them or their place) by tag."""

    file: IO[bytes]
    order: str
    offset: int
    entries: dict[int, tuple[int, int, bytes]]

    @property
    def is_reduced(self) -> bool:
        return bool(self.value(254) & 1) or self.value(255) == 2

    @property
    def is_mask(self) -> bool:
        return bool(self.value(254) & 4)

    def value(self, tag: int, default: int = 0) -> int:
        return next(iter(self.values(tag)), default)

    def values(self, tag: int) -> tuple[int, ...]:
        """Return the integers of a tag; none where it is missing or has others."""
        kind, count, field = self.entries.get(tag, (0, 0, b""))
        code = _INTEGERS.get(kind)
        if code is None:
            return ()
        if count > _MAX_VALUES:
            raise ValueError(f"tag {tag} has {count} values")
        size = count * struct.calcsize(f"={code}")
        if size > len(field):
            self.file.seek(int.from_bytes(field, "little" if self.order == "<" else "big"))
            field = self.file.read(size)
            if len(field) < size:
                raise ValueError(f"the values of tag {tag} are not in the file")
        return struct.unpack_from(f"{self.order}{count}{code}", field)

    def rational(self, tag: int) -> float:
        """Return the first rational of a tag; 0 where it is missing, wrong or of another type."""
        kind, count, field = self.entries.get(tag, (0, 0, b""))
        if kind != 5 or not count:
            return 0.0
        if 8 * count > len(field):
            self.file.seek(int.from_bytes(field, "little" if self.order == "<" else "big"))
            field = self.file.read(8)
        if len(field) < 8:
            return 0.0
        above, below = struct.unpack_from(f"{self.order}2I", field)
        return above / below if below else 0.0

    def page(self) -> TiffPage:
        """Return how the picture is stored. Raises UnsupportedKindError, or ValueError for a damaged file."""
        samples = self.value(277, 1)
        if not 1 <= samples <= _MAX_SAMPLES:
            raise UnsupportedKindError(f"TIFF of {samples} samples a pixel")
        if max(self.value(32997, 1), self.value(32998, 1)) > 1:
            raise UnsupportedKindError("TIFF with depth (a volume)")
        width, height = self.value(256), self.value(257)
        tiled = 324 in self.entries
        rows = min(self.value(278, height) or height, height)
        interpretation = self.value(262, RGB if samples in (3, 4) else 0)  # some writers leave it out
        compression = self.value(259, 1)
        if compression == _OLD_JPEG:
            interpretation = YCBCR
        if interpretation not in _COLOURS:
            name = _INTERPRETATIONS.get(interpretation, f"colours of kind {interpretation}")
            raise UnsupportedKindError(f"TIFF with {name}")
        if interpretation == CMYK and self.value(332, 1) != 1:
            raise UnsupportedKindError("TIFF with inks other than cyan, magenta, yellow and black")
        extra = self.values(338)
        if not extra and samples > _COLOURS[interpretation]:
            # libtiff and Pillow take a fourth sample of RGB as alpha. Of others nothing is known.
            extra = (2 if interpretation == RGB and samples == 4 else 0,)
        extra = (*extra, *[0] * samples)[: max(0, samples - _COLOURS[interpretation])]
        page = TiffPage(
            order=self.order,
            width=width,
            height=height,
            bits=_only(self.values(258)[:samples] or (1,), "samples of several sizes"),
            format={4: 1}.get(format := _only(self.values(339)[:samples] or (1,), "samples of several kinds"), format),
            samples=samples,
            interpretation=interpretation,
            extra=extra,
            planar=samples > 1 and self.value(284, 1) == 2,
            compression=compression,
            predictor=self.value(317, 1),
            reversed_bits=self.value(266, 1) == 2,
            tiled=tiled,
            chunk_size=(self.value(322), self.value(323)) if tiled else (width, rows),
            offsets=self.values(324 if tiled else 273),
            counts=self.values(325 if tiled else 279),
            colour_map=self.values(320) if interpretation == PALETTE else (),
            orientation=self.value(274, 1),
        )
        self._check_subsampling(page)
        return page

    def _check_subsampling(self, page: TiffPage) -> None:
        """Colours at half the size are stored in blocks; they are read by libtiff, as long as they are compressed."""
        if page.interpretation == YCBCR and page.compression == 1:
            blocks = self.values(530) not in ((1, 1), ())
            if blocks or (page.counts and sum(page.counts) < page.width * page.height * 3):
                raise UnsupportedKindError("TIFF with uncompressed colours at a part of the size (YCbCr subsampling)")


def _only(values: tuple[int, ...], name: str) -> int:
    if len(set(values)) > 1:
        raise UnsupportedKindError(f"TIFF with {name}")
    return values[0]


def _directories(file: IO[bytes], order: str, big: bool, offset: int) -> Iterator[Directory]:
    """Yield the directories of the chain. A chain with a loop ends there, an endless one after many pages."""
    count_code, entry = ("Q", f"{order}HHQ8s") if big else ("H", f"{order}HHI4s")
    size, entries_left = struct.calcsize(entry), _MAX_ENTRIES
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MAX_PAGES:
        seen.add(offset)
        file.seek(offset)
        field = file.read(struct.calcsize(f"={count_code}"))
        count = struct.unpack(f"{order}{count_code}", field)[0] if len(field) in (2, 8) else 0
        entries_left -= count
        data = file.read(count * size) if entries_left >= 0 else b""
        if not count or len(data) < count * size:
            if len(seen) > 1:  # the first pages are sound
                return
            raise ValueError("its directory is not in the file")
        entries = {tag: (kind, number, value) for tag, kind, number, value in struct.iter_unpack(entry, data)}
        directory = Directory(file, order, offset, entries)
        field = file.read(8 if big else 4)
        yield directory
        offset = int.from_bytes(field, "little" if order == "<" else "big")


# ---- kinds


def _pillow_reads(page: TiffPage, big: bool) -> bool:
    """Return whether Pillow reads this kind rightly, False if `tiff_samples` does.

    Raises UnsupportedKindError if nothing does.
    """
    kind = (page.interpretation, page.samples)
    broken_header = big and page.order == ">"  # Pillow takes the version for a size
    if page.compression in _BYTES:
        plain = page.format == 1 and not page.planar and not broken_header
        predicted = page.predictor != 1
        if plain and not (predicted and (page.compression not in _PREDICTED or page.predictor != 2)):
            if page.bits == 8 and kind in ((0, 1), (1, 1), (RGB, 3)):
                return True
            if page.bits == 8 and kind in ((CMYK, 4), (YCBCR, 3), (LAB, 3)) and not page.reversed_bits:
                return True
            if page.bits in (1, 2, 4) and kind in ((0, 1), (1, 1)) and not predicted:
                return True
            if page.bits == 16 and kind in ((1, 1), (RGB, 3), (CMYK, 4)) and not page.reversed_bits:
                return True
        return _check_samples(page)
    if page.compression in (_WORDS, _THUNDERSCAN, *_FAX):
        known = page.format == 1 and page.samples == 1 and page.interpretation in (0, 1)
        known = known and page.bits == (4 if page.compression == _THUNDERSCAN else 1)
        name = "fax compression" if page.compression in _FAX else f"compression {page.compression}"
    elif page.compression in (_JPEG, _OLD_JPEG):
        known = page.format == 1 and page.bits == 8 and not page.planar
        known = known and kind in ((0, 1), (1, 1), (RGB, 3), (CMYK, 4), (YCBCR, 3))
        name = "JPEG"
    else:
        name = _OTHERS.get(page.compression, f"number {page.compression}")
        raise UnsupportedKindError(f"TIFF with compression {name}")
    if not known or broken_header:
        raise UnsupportedKindError(f"TIFF with {name} of {_described(page)}")
    return True


def _check_samples(page: TiffPage) -> bool:
    """Raise UnsupportedKindError unless `tiff_samples` reads the page; return False."""
    whole = page.bits in (8, 16, 32, 64)
    if page.format == 3:
        known = page.bits in (16, 32, 64) and page.predictor in (1, 3)
    else:
        known = page.format == 1 or (page.format == 2 and whole)
        known = known and 1 <= page.bits <= (64 if whole else 32)
        known = known and (page.predictor == 1 or (page.predictor == 2 and whole))
    if page.interpretation == PALETTE:
        known = known and page.format == 1 and page.bits <= 16
    elif page.interpretation in (YCBCR, LAB):
        known = known and page.interpretation == YCBCR and page.format == 1 and page.bits == 8
    if not known or page.samples < page.colours:
        raise UnsupportedKindError(f"TIFF of {_described(page)}")
    return False


def _described(page: TiffPage) -> str:
    names = {
        1: "unsigned integers",
        2: "integers",
        3: "floats",
        4: "samples",
        5: "complex integers",
        6: "complex floats",
    }
    colours = {0: "grey", 1: "grey", RGB: "RGB", PALETTE: "palette", CMYK: "CMYK", YCBCR: "YCbCr", LAB: "L*a*b*"}
    text = f"{page.samples} {names.get(page.format, 'samples')} of {page.bits} bits a pixel"
    text += f" ({colours.get(page.interpretation, 'mask')}{', in planes' if page.planar else ''})"
    return text + (f" with predictor {page.predictor}" if page.predictor != 1 else "")
