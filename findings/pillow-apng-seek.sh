#!/usr/bin/env bash
# After a seek back, Pillow cannot go forward in an animated PNG again.
#
# Version: Pillow 13.0.0.
#
# Expected: the frames of a valid animation can be visited in any order, as the documentation of `seek` implies and as
# GIF and WebP allow.
#
# Seen: the first frame can be read again, but any other then raises "APNG contains frame sequence errors", as if the
# file were damaged. Pillow rewinds and reads forward, but expects the numbers of chunks to go on from where it was.
#
#   order of frames   APNG             GIF, WebP
#   0 to 7            all              all
#   6, 0              all              all
#   6, 2              frame 2 raises   all
#   6, 0, 2           frame 2 raises   all
#
# Why it matters: a viewer that scrubs, or a program that takes single frames in the order of a list, reports a damaged
# file where nothing is wrong. Opening the file again for each step back helps.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile pillow==13.0.0
cd "$dir"
PYTHONDONTWRITEBYTECODE=1 venv/bin/python - <<'PYTHON'
import sys

from PIL import Image

frames = [Image.new("RGB", (64, 48), (30 * number, 0, 255 - 30 * number)) for number in range(8)]
changed = False
for kind in ("png", "gif", "webp"):
    frames[0].save(f"x.{kind}", save_all=True, append_images=frames[1:], duration=100)
    for order in (range(8), (6, 0), (6, 2), (6, 0, 2)):
        failed = None
        with Image.open(f"x.{kind}") as file:
            for number in order:
                try:
                    file.seek(number)
                    file.load()
                except Exception as error:
                    failed = number
                    print(f"{kind}, frames {[*order]}: frame {number} raises {type(error).__name__}: {error}")
                    break
        if failed is None:
            print(f"{kind}, frames {[*order]}: all are read")
        changed |= failed != (2 if kind == "png" and tuple(order) in ((6, 2), (6, 0, 2)) else None)
sys.exit("Pillow behaves differently now" if changed else 0)
PYTHON
