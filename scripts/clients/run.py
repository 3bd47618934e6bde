"""Ask iota through real clients: `.venv/bin/python scripts/clients/run.py [CLIENT...]`.

Installs the clients, in the versions that stand beside this file, into a temporary folder (from PyPI and npm, so this
needs the network, and node for those from npm), starts `pocketvlm serve` on loopback, and runs checks.py,
anthropic_checks.py, ollama_checks.py and checks.mjs against it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent.parent / "docs" / "sample.png"
ANTHROPIC, OLLAMA = "anthropic:", "ollama:"  # before the names of clients of these APIs


def main() -> None:
    failed = False
    with tempfile.TemporaryDirectory() as name, server() as url:
        folder = Path(name)
        for requirements, (script, clients) in chosen(sys.argv[1:]).items():
            python = environment(folder / Path(requirements).stem, HERE / requirements)
            command = [str(python), str(HERE / script), url, str(PICTURE), *clients]
            failed |= subprocess.run(command, check=False).returncode != 0
        packages = [client.removeprefix("npm:") for client in sys.argv[1:] if client.startswith("npm:")]
        if packages or not sys.argv[1:]:
            failed |= javascript(folder / "npm", [url, str(PICTURE), *packages])
    sys.exit(failed)


def chosen(wanted: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Return the script and the names of its clients by requirements; no names mean all that are installed."""
    apart = "llama-index-llms-openai-like"  # it needs another version of openai than the others
    python = [client for client in wanted if not client.startswith("npm:")]
    openai = [client for client in python if client != apart and not client.startswith((ANTHROPIC, OLLAMA))]
    anthropic, ollama = (
        [client.removeprefix(prefix) for client in python if client.startswith(prefix)]
        for prefix in (ANTHROPIC, OLLAMA)
    )
    environments = {
        "requirements.txt": ("checks.py", openai),
        "requirements-llama-index.txt": ("checks.py", [client for client in python if client == apart]),
        "requirements-anthropic.txt": ("anthropic_checks.py", anthropic),
        "requirements-ollama.txt": ("ollama_checks.py", ollama),
    }
    if wanted:
        return {name: (script, clients) for name, (script, clients) in environments.items() if clients}
    return {**environments, "requirements-llama-index.txt": ("checks.py", [apart])}


def environment(folder: Path, requirements: Path) -> Path:
    """Make a virtual environment with `requirements`, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
    return python


def javascript(folder: Path, arguments: list[str]) -> bool:
    """Install the clients from npm into `folder` and run checks.mjs there. Return whether one failed."""
    npm = shutil.which("npm")
    if npm is None:
        print("There is no npm here: its clients are not asked.")
        return False
    folder.mkdir()
    for name in ("package.json", "package-lock.json", "checks.mjs"):
        shutil.copy(HERE / name, folder)
    subprocess.run([npm, "ci", "--silent"], cwd=folder, check=True)
    return subprocess.run(["node", "checks.mjs", *arguments], cwd=folder, check=False).returncode != 0


@contextmanager
def server() -> Iterator[str]:
    """Serve iota, and yield the address for clients."""
    command = [
        sys.executable,
        "-m",
        "pocketvlm",
        "serve",
        "--port",
        "0",
        "--ctx-size",
        "4096",
        "--log-level",
        "warning",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+/v1", process.stdout.readline())
        if match is None:
            sys.exit("pocketvlm serve did not start")
        yield match[0]
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
