#!/usr/bin/env bash
# Pillow cannot read the fourth picture of an MPO file that it wrote itself.
#
# Version: Pillow 13.0.0.
#
# Expected: `save("x.mpo", save_all=True, append_images=...)` writes a file of which every picture can be read back.
#
# Seen: n_frames is right and the first three pictures can be read. From the fourth on the index of the file (the MP
# Entry values, tag 0xB002) points in front of the picture or behind it, so seek or load raises.
#
#   pictures written   read back
#   2                  2
#   3                  3
#   6                  3
#
# Why it matters: MPO is what cameras and phones write for stereo pictures and bursts. A program that joins more than
# three pictures with Pillow leaves a file that looks complete, with the right count and all bytes there.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile pillow==13.0.0
cd "$dir"
PYTHONDONTWRITEBYTECODE=1 venv/bin/python - <<'PYTHON'
import sys

from PIL import Image

changed = False
for count, readable in ((2, 2), (3, 3), (6, 3)):
    frames = [Image.effect_noise((320, 240), 40 + 10 * number).convert("RGB") for number in range(count)]
    frames[0].save("x.mpo", save_all=True, append_images=frames[1:])
    read = 0
    with Image.open("x.mpo") as file:
        assert file.n_frames == count
        for number in range(count):
            try:
                file.seek(number)
                file.load()
                read += 1
            except Exception as error:
                print(f"picture {number + 1} of {count}: {type(error).__name__}: {str(error)[:60]}")
    print(f"{count} pictures written, {read} read back")
    changed |= read != readable
sys.exit("Pillow behaves differently now" if changed else 0)
PYTHON
