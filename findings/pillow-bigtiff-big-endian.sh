#!/usr/bin/env bash
# Pillow does not open big-endian BigTIFF files, not even its own.
#
# Version: Pillow 13.0.0, tifffile 2026.3.3, numpy 2.4.6.
#
# Expected: Image.open reads BigTIFF in both byte orders. The list of headers that Pillow accepts as TIFF names both.
#
# Seen: it reads BigTIFF in little-endian order. For the same picture in big-endian order it warns of "Corrupt EXIF
# data" and raises UnidentifiedImageError. By reading, the version 43 is a number of two bytes, and Pillow compares the
# byte at offset 2 with it. There a big-endian file has 0, so Pillow reads the file as a classic TIFF and does not find
# the dimensions. tifffile reads all of these files.
#
#   header                     written by                           Image.open
#   49 49 2a 00  TIFF          tifffile                             reads it
#   4d 4d 00 2a  TIFF          tifffile                             reads it
#   49 49 2b 00  BigTIFF       tifffile                             reads it
#   4d 4d 00 2b  BigTIFF       tifffile                             UnidentifiedImageError
#   4d 4d 00 2b  BigTIFF       Pillow, mode I;16B, big_tiff=True    UnidentifiedImageError
#
# Why it matters: the warning and the error make a user look for damage in a valid file. Pillow saves a 16-bit picture
# and then does not open it. A test that saves other modes as BigTIFF does not show it, because Pillow writes them in
# little-endian order. Open such files with tifffile, or save them in little-endian order.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" - <<'PYTHON'
import io
import sys
import warnings

import numpy as np
import tifffile
from PIL import Image

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)
DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000


def by_tifffile(big, order):
    file = io.BytesIO()
    tifffile.imwrite(file, GRAY, bigtiff=big, byteorder=order, metadata=None)
    return file.getvalue()


def by_pillow(mode):
    file = io.BytesIO()
    image = Image.fromarray(DEEP)
    if mode == "I;16B":
        image = Image.frombytes(mode, image.size, DEEP.astype(">u2").tobytes())
    image.save(file, "TIFF", big_tiff=True)
    return file.getvalue()


def opened(data, picture):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError:
            return "UnidentifiedImageError", str(caught[0].message).strip() if caught else ""
    return "right" if np.array_equal(np.asarray(image), picture) else "wrong", ""


FILES = [
    ("TIFF of tifffile, little-endian", by_tifffile(False, "<"), GRAY, "49492a00", True),
    ("TIFF of tifffile, big-endian", by_tifffile(False, ">"), GRAY, "4d4d002a", True),
    ("BigTIFF of tifffile, little-endian", by_tifffile(True, "<"), GRAY, "49492b00", True),
    ("BigTIFF of tifffile, big-endian", by_tifffile(True, ">"), GRAY, "4d4d002b", False),
    ("BigTIFF of Pillow, mode I;16", by_pillow("I;16"), DEEP, "49492b00", True),
    ("BigTIFF of Pillow, mode I;16B", by_pillow("I;16B"), DEEP, "4d4d002b", False),
]
changed = False
for name, data, picture, header, opens in FILES:
    valid = np.array_equal(tifffile.imread(io.BytesIO(data)), picture)
    result, warning = opened(data, picture)
    print(f"{name:<35} {data[:4].hex(' ')}   tifffile: {'right' if valid else 'wrong'}   Pillow: {result} {warning}")
    changed |= not valid or data[:4].hex() != header or result != ("right" if opens else "UnidentifiedImageError")
    changed |= warning.startswith("Corrupt EXIF data") == opens
sys.exit("Pillow reads BigTIFF differently now" if changed else 0)
PYTHON
