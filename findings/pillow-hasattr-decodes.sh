#!/usr/bin/env bash
# Asking whether a Pillow image has `__array_interface__` decodes it.
#
# Version: Pillow 13.0.0.
#
# Expected: `hasattr` looks whether an attribute is there, which costs nothing, and an opened picture stays undecoded
# until its pixels are asked for, as Pillow's documentation of `Image.open` says.
#
# Seen: the attribute is a property that decodes the file and copies all pixels. For a JPEG of 24 megapixels `hasattr`
# takes up to four times as long as `load`, and 144 MB are made and thrown away, twice the pixels.
# `hasattr(type(image), ...)` costs nothing.
#
#   on an opened JPEG of 6000x4000                    decoded after it   bytes made
#   hasattr(type(image), "__array_interface__")       no                 0
#   hasattr(image, "__array_interface__")             yes                144,162,456
#
# Why it matters: programs tell arrays from paths by this attribute, and `isinstance` with a runtime-checkable protocol
# does so before Python 3.12. A server that sorts its inputs so decodes every picture before it has looked at its size.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile pillow==13.0.0
cd "$dir"
PYTHONDONTWRITEBYTECODE=1 venv/bin/python - <<'PYTHON'
import sys
import time
import tracemalloc

from PIL import Image

WIDTH, HEIGHT = 6000, 4000
Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB").save("photo.jpg")


def measured(action):
    """Return whether the picture is decoded afterwards, the bytes that Python made meanwhile, and seconds."""
    with Image.open("photo.jpg") as image:
        tracemalloc.start()
        began = time.perf_counter()
        action(image)
        seconds = time.perf_counter() - began
        made = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return image._im is not None, made, seconds


of_type = measured(lambda image: hasattr(type(image), "__array_interface__"))
of_image = measured(lambda image: hasattr(image, "__array_interface__"))
load = measured(lambda image: image.load())
for name, (decoded, made, seconds) in (("type", of_type), ("image", of_image), ("load()", load)):
    print(f"{name:7} decoded: {decoded!s:5}  bytes: {made:>11,}  {seconds * 1000:.1f} ms")
expected = not of_type[0] and of_type[1] < 100_000 and of_image[0] and of_image[1] >= 3 * WIDTH * HEIGHT
sys.exit(0 if expected else "Pillow behaves differently now")
PYTHON
