"""Carry pocketvlm to a machine without a network: `python3 scripts/wheelhouse.py FOLDER [--extras server,heif]`.

FOLDER then holds a wheel of everything, for machines with the same system, kind of processor and Python. There:

    python3 -m venv venv && venv/bin/pip install --no-index --find-links FOLDER FOLDER/pocketvlm-*.whl

pip compiles llama.cpp for the CPU of this machine; the environment's CMAKE_ARGS can ask for another. Standard library
only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--extras", default="", help="as in pip's brackets: convert,server,heif")
    arguments = options.parse_args()
    extras = f"[{arguments.extras}]" if arguments.extras else ""
    command = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(arguments.folder), f"{ROOT}{extras}"]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    wheels = list(arguments.folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.0f} MB, in {arguments.folder}. On the other machine:")
    print(f"  python{sys.version_info[0]}.{sys.version_info[1]} -m venv venv")
    folder = arguments.folder.name
    own = max(arguments.folder.glob("pocketvlm-*.whl"), key=lambda path: path.stat().st_mtime)
    print(f'  venv/bin/pip install --no-index --find-links {folder} "{folder}/{own.name}{extras}"')


if __name__ == "__main__":
    main()
