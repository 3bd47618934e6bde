"""Read the samples of TIFF files in the many forms that Pillow lacks: planes, floats, any number of bits and bands.

libtiff, by way of Pillow, undoes the compression of strips and tiles, as if they were 8-bit grey pictures.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pocketvlm.pictures.depth import narrow_to_eight_bits, wide_to_eight_bits
from pocketvlm.pictures.opened import MAX_SIDE, UnsupportedKindError
from pocketvlm.pictures.tiff import CMYK, PALETTE, YCBCR, TiffPage
from pocketvlm.system.json_types import ByteArray

if TYPE_CHECKING:
    from PIL import Image

    Samples = npt.NDArray[Any]  # [rows, width, samples] of the file's own type

_BAND = 1 << 22  # bytes to decode at once, unless a strip or tile is larger
_MAX_CHUNKS = 1024  # of a band
# A compressed chunk has at most this many times the bytes of its rows, and some for tables.
_LONGEST_CODE, _OVERHEAD = 2, 4096
_MAX_BITS = 1 << 22  # to unpack at once, in one byte each, unless a row has more
_MAX_PADDING = 1 << 24  # pixels of tiles that lie outside of the picture
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class _Chunk:
    """A strip or a tile, or rows of an uncompressed strip. `left` and `top` are its place in the picture."""

    offset: int
    count: int  # bytes in the file; 0 if unknown
    plane: int
    left: int
    top: int
    rows: int


def read_samples(file: IO[bytes], page: TiffPage) -> Image.Image:
    """Return the picture with 8 bits a channel, as mode L, LA, RGB, RGBA, CMYK or YCbCr.

    Raises UnsupportedKindError for a compression that this Pillow lacks, or errors of any kind for a damaged file.
    """
    channels = [*range(page.colours), *([page.alpha] if page.alpha is not None else [])]
    wide = page.format == 3 or page.bits >= 32
    shape = (page.height, page.width, 3 if page.interpretation == PALETTE else page.colours)
    colours = np.zeros(shape, np.float32 if wide else np.uint8)
    alpha = np.zeros(shape[:2] if page.alpha is not None else (0, 0), colours.dtype)
    for chunks, rows in _bands(file, page, channels):
        samples = _samples(rows, page)
        for sample in [chunks[0].plane] if page.planar else channels:
            values = samples[..., 0 if page.planar else sample]
            if page.interpretation == PALETTE and sample == 0:
                _place(colours, _palette(page)[values], chunks, page)
                continue
            with np.errstate(over="ignore"):  # float64 may be infinite as float32
                values = values.astype(np.float32) if wide else narrow_to_eight_bits(values, page.bits)
            _place(colours[..., sample] if sample < page.colours else alpha, values, chunks, page)
    if wide:
        colours = wide_to_eight_bits(colours, floats=page.format == 3)
        alpha = wide_to_eight_bits(alpha, floats=page.format == 3) if alpha.size else alpha
    return _image(page, colours, alpha if alpha.size else None)


def _image(page: TiffPage, colours: ByteArray, alpha: ByteArray | None) -> Image.Image:
    from PIL import Image

    if page.inverted:
        np.subtract(255, colours, out=colours)
    if alpha is not None and page.premultiplied:
        for top in range(0, page.height, step := max(1, _BAND // (page.width * 4))):
            rows, opaque = colours[top : top + step], alpha[top : top + step, :, None].astype(np.uint16)
            scaled = (rows.astype(np.uint16) * 255 + opaque // 2) // np.maximum(opaque, 1)
            np.copyto(rows, np.minimum(scaled, 255).astype(np.uint8), where=opaque > 0)
    mode = {CMYK: "CMYK", YCBCR: "YCbCr"}.get(page.interpretation)
    data = np.ascontiguousarray(colours[..., 0] if colours.shape[2] == 1 else colours)
    image = Image.frombytes(mode or ("L" if data.ndim == 2 else "RGB"), (page.width, page.height), data.tobytes())
    if alpha is not None:
        image = image.convert("RGB") if mode else image
        image.putalpha(Image.fromarray(alpha))
    image.getexif()[0x0112] = page.orientation
    return image


def _palette(page: TiffPage) -> ByteArray:
    """Return the colours as uint8 [colours, 3]. Values of 8 bits, where 16 are meant, are a known fault of writers."""
    colours = np.array(page.colour_map, np.uint16)
    if len(colours) < 3 << page.bits:
        raise ValueError("its palette is too short")
    colours = colours[: 3 << page.bits].reshape(3, -1).T
    return np.asarray(colours if colours.max() < 256 else colours >> 8, np.uint8)


# ---- strips and tiles


def _bands(file: IO[bytes], page: TiffPage, channels: list[int]) -> Iterator[tuple[list[_Chunk], ByteArray]]:
    """Yield chunks one below the other with their rows, uint8 [rows, bytes of a row]."""
    row_bytes = (page.chunk_size[0] * (1 if page.planar else page.samples) * page.bits + 7) // 8
    band: list[_Chunk] = []
    for chunk in _chunks(page, channels, row_bytes):
        full = (len(band) + 1) * page.chunk_size[1] * row_bytes > _BAND
        if band and (full or len(band) == _MAX_CHUNKS or chunk.plane != band[0].plane or chunk.rows > band[-1].rows):
            yield from _decoded(file, page, band, row_bytes)
            band = []
        band.append(chunk)
    if band:
        yield from _decoded(file, page, band, row_bytes)


def _chunks(page: TiffPage, channels: list[int], row_bytes: int) -> Iterator[_Chunk]:
    width, height = page.chunk_size
    if width < 1 or height < 1:
        raise ValueError("its strips or tiles have no size")
    across, down = -(-page.width // width), -(-page.height // height)
    if max(width, height) > MAX_SIDE or across * width * down * height > 4 * page.width * page.height + _MAX_PADDING:
        raise ValueError("its tiles are too large for the picture")
    if len(page.offsets) < across * down * (page.samples if page.planar else 1):
        raise ValueError("it lacks strips or tiles")
    counts = page.counts if len(page.counts) == len(page.offsets) else (0,) * len(page.offsets)
    for plane in channels if page.planar else [0]:
        for place in range(across * down):
            number = plane * across * down + place
            y, x = divmod(place, across)
            rows = height if page.tiled else min(height, page.height - y * height)
            # Rows that are not compressed can be read a few at a time.
            step = max(1, _BAND // row_bytes) if page.compression == 1 and not page.tiled else rows
            for first in range(0, rows, step):
                offset = page.offsets[number] + first * row_bytes
                yield _Chunk(offset, counts[number], plane, x * width, y * height + first, min(step, rows - first))


def _decoded(
    file: IO[bytes], page: TiffPage, band: list[_Chunk], row_bytes: int
) -> Iterator[tuple[list[_Chunk], ByteArray]]:
    """Yield the rows of a band, in parts if it is one large chunk."""
    total = sum(chunk.rows for chunk in band)
    parts = []
    for chunk in band:
        file.seek(chunk.offset)
        size = chunk.rows * row_bytes
        if page.compression != 1:  # a file may say that each chunk is the whole file
            size = min(chunk.count or _LONGEST_CODE * size + _OVERHEAD, _LONGEST_CODE * size + _OVERHEAD)
        data = file.read(size)
        parts.append(data.translate(_REVERSED) if page.reversed_bits else data)
    if page.compression == 1:
        if any(len(part) < chunk.rows * row_bytes for part, chunk in zip(parts, band, strict=True)):
            raise ValueError("the image file is truncated")
        rows = np.frombuffer(b"".join(parts), np.uint8).reshape(total, row_bytes)
    else:
        rows = _decompressed(parts, page.compression, row_bytes, band[0].rows, total)
    step = total if len(band) > 1 else max(1, _BAND // row_bytes)
    for first in range(0, total, step):
        part = rows[first : first + step]
        if len(band) > 1:
            yield band, part
        else:
            [chunk] = band
            yield [_Chunk(0, 0, chunk.plane, chunk.left, chunk.top + first, len(part))], part


def _decompressed(parts: list[bytes], compression: int, width: int, rows: int, height: int) -> ByteArray:
    """Undo the compression of strips of `rows` rows, the last of which may have fewer; uint8 [height, width]."""
    from PIL.TiffImagePlugin import TiffImageFile

    count, lengths = len(parts), [len(part) for part in parts]
    lists = 8 + 2 + 12 * 9 + 4  # where the two lists stand that do not fit into the directory
    offsets = [lists + 8 * count + end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8]),
        (259, 3, [compression]),
        (262, 3, [1]),
        (273, 4, offsets),
        (277, 3, [1]),
        (278, 4, [rows]),
        (279, 4, lengths),
    ]
    file = io.BytesIO()
    file.write(struct.pack("<2sHIH", b"II", 42, 8, len(tags)))
    for tag, kind, values in tags:
        field = values[0] if len(values) == 1 else lists + (4 * count if tag == 279 else 0)
        file.write(struct.pack("<HHII", tag, kind, len(values), field))
    file.write(struct.pack(f"<I{count}I{count}I", 0, *offsets, *lengths))
    for part in parts:
        file.write(part)
    file.seek(0)
    image = TiffImageFile(file)
    try:
        image.load()
    except OSError:
        if compression in (34925, 50000) and not _is_built_in(compression, parts):
            name = {34925: "LZMA", 50000: "zstd"}[compression]
            raise UnsupportedKindError(f"TIFF with compression {name} (by this build of Pillow)") from None
        raise
    return np.asarray(image)


def _is_built_in(compression: int, failed: list[bytes]) -> bool:
    """Return whether this libtiff, which failed, undoes the compression of one byte."""
    import lzma

    probe = [lzma.compress(b"a") if compression == 34925 else b"(\xb5/\xfd\x20\x01\x09\0\0a"]
    try:
        return failed != probe and _decompressed(probe, compression, 1, 1, 1).tobytes() == b"a"
    except (OSError, UnsupportedKindError):
        return False


def _place(target: npt.NDArray[Any], values: npt.NDArray[Any], chunks: list[_Chunk], page: TiffPage) -> None:
    """Put the rows of chunks where they belong, without what lies outside of the picture."""
    if not page.tiled:
        top = chunks[0].top
        target[top : top + len(values)] = values
        return
    first = 0
    for chunk in chunks:
        place = target[chunk.top : chunk.top + chunk.rows, chunk.left : chunk.left + page.chunk_size[0]]
        place[:] = values[first : first + len(place), : place.shape[1]]
        first += chunk.rows


# ---- samples


def _samples(rows: ByteArray, page: TiffPage) -> Samples:
    """Return the samples of rows, uint8 [rows, bytes of a row], with predictors undone."""
    count, width, samples = len(rows), page.chunk_size[0], 1 if page.planar else page.samples
    if page.bits not in (8, 16, 32, 64):
        return _unpacked(rows, width * samples, page.bits).reshape(count, width, samples)
    size = page.bits // 8
    if page.predictor == 3:  # bytes of equal weight stand together, the highest first, each as a difference
        planes = rows.reshape(count, -1, samples).cumsum(axis=1, dtype=np.uint8).reshape(count, size, width * samples)
        values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{size}")
        return values.reshape(count, width, samples)
    integers = np.ascontiguousarray(rows).view(f"{page.order}u{size}").reshape(count, width, samples)
    integers = integers.astype(f"=u{size}", copy=False)
    if page.predictor == 2:
        integers = integers.cumsum(axis=1, dtype=integers.dtype)
    return integers.view(f"=f{size}" if page.format == 3 else f"=i{size}" if page.format == 2 else integers.dtype)


def _unpacked(rows: ByteArray, count: int, bits: int) -> npt.NDArray[Any]:
    """Return `count` integers of `bits` bits from each row; the highest bit comes first, whatever the byte order."""
    values = np.zeros((len(rows), count), np.uint16 if bits <= 16 else np.uint32)
    step = max(1, _MAX_BITS // (count * bits))
    for first in range(0, len(rows), step):
        part = values[first : first + step]
        single = np.unpackbits(rows[first : first + step], axis=1, count=count * bits).reshape(len(part), count, bits)
        for bit in range(bits):
            part <<= 1
            part |= single[..., bit]
    return values
