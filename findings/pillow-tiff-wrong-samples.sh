#!/usr/bin/env bash
# Pillow reads two kinds of TIFF file wrong, without an error or a warning.
#
# Version: Pillow 13.0.0, tifffile 2026.3.3, imagecodecs 2026.3.6, numpy 2.4.6.
#
# Expected: the picture that the file describes, or an error. Pillow narrows 16-bit colors to their high byte.
#
# Seen: (a) RGB, RGBA and CMYK with 16 bits a sample in separate planes (PlanarConfiguration 2) and no compression. Each
# plane is read as if its samples had 8 bits, so each byte of the left half of a row becomes a pixel. (b) Gray pictures
# of int16, int32 or float32 in big-endian order with compression (tried: zlib, LZW, PackBits). The bytes of each sample
# are swapped once too often. tifffile reads all of these files right.
#
#   file                                               red, or the values          Pillow
#   (a) 16-bit RGB, planes, no compression             0, 65535, 0, 65535          0, 0, 255, 255
#       the same with zlib, or with pixels, not planes                             0, 255, 0, 255
#   (b) int16, big-endian, zlib                        1, 2, 256, 1000             256, 512, 1, -6141
#       float32, big-endian, zlib                      1, 2, 256, 1000             4.6e-41, 9.0e-44, ...
#       the same in little-endian order, or uncompressed, or uint16                1, 2, 256, 1000
#
# Why it matters: the size and the mode are right, so a program goes on with noise. Such samples hold measurements and
# elevations, which do not look wrong at a glance. A test of 16-bit colors with pixels in one plane does not show (a),
# and a test without compression does not show (b). PIL.TiffImagePlugin.READ_LIBTIFF = True makes (a) right, but then
# (b) is wrong without compression, too. Read these files with tifffile.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" -W error - <<'PYTHON'
import io
import sys

import numpy as np
import tifffile
from PIL import Image, TiffImagePlugin


def write(samples, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, samples, metadata=None, **options)
    if not np.array_equal(tifffile.imread(io.BytesIO(file.getvalue())), samples):
        sys.exit("tifffile does not read back what it wrote")
    return file.getvalue()


def read(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def colors():
    row = np.array([0, 65535, 0, 65535], np.uint16)
    for name, planes, options in (
        ("RGB", np.stack([row, 0 * row, 0 * row]), {"photometric": "rgb"}),
        ("RGBA", np.stack([row, 0 * row, 0 * row, row]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ("CMYK", np.stack([row, 0 * row, 0 * row, row]), {"photometric": "separated"}),
    ):
        planes = planes[:, None]  # bands, one row, four columns
        for layout in ("separate", "contig"):
            samples = planes if layout == "separate" else np.moveaxis(planes, 0, -1)
            for order in "<>":
                for compression in (None, "zlib"):
                    data = write(samples, planarconfig=layout, byteorder=order, compression=compression, **options)
                    label = f"16-bit {name}, {layout}, {order}, {compression or 'uncompressed'}"
                    yield label, data, np.moveaxis(planes >> 8, 0, -1), layout == "separate" and not compression


def values():
    for dtype in (np.uint16, np.int16, np.int32, np.float32):
        samples = np.array([[1, 2, 256, 1000]], dtype)
        for order in "<>":
            for compression in (None, "zlib", "lzw", "packbits"):
                data = write(samples, photometric="minisblack", byteorder=order, compression=compression)
                label = f"{np.dtype(dtype).name}, {order}, {compression or 'uncompressed'}"
                yield label, data, samples, order == ">" and bool(compression) and dtype is not np.uint16


changed = False
for label, data, expected, is_wrong in (*colors(), *values()):
    image = read(data)
    first = image[0, :, 0] if image.ndim == 3 else image[0]
    right = np.array_equal(image, expected)
    print(f"{label:<40} {'right' if right else 'wrong'}: {', '.join(f'{value:.6g}' for value in first)}")
    changed |= right == is_wrong

# Each pixel of a plane is one byte of its left half.
row = np.array([0x1122, 0x3344, 0x5566, 0x7788], np.uint16)
data = write(np.stack([row, row, row])[:, None], photometric="rgb", planarconfig="separate", byteorder=">")
print("16-bit samples 1122 3344 5566 7788 in planes:", read(data)[0, :, 0].tobytes().hex(" "))
changed |= read(data)[0, :, 0].tobytes() != bytes.fromhex("11223344")

TiffImagePlugin.READ_LIBTIFF = True
wrong = []
for label, data, expected, _ in (*colors(), *values()):
    if "uncompressed" in label and not np.array_equal(read(data), expected):
        print(f"with READ_LIBTIFF wrong: {label}")
        wrong.append(label)
changed |= wrong != [f"{dtype}, >, uncompressed" for dtype in ("int16", "int32", "float32")]
sys.exit("Pillow reads these TIFF files differently now" if changed else 0)
PYTHON
