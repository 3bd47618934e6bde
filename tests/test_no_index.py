"""pocketvlm is in no package index: whoever registers the name would be installed. So nothing tells pip to get it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pocketvlm.system.extras import install_extra, missing_packages

ROOT = Path(__file__).parent.parent
# `pip install pocketvlm`, "pocketvlm[server]" and the like, also in uv and pipx; a path before the name is sound.
NAMED = re.compile(
    r"""\b(?:pip3?|pipx|uv[ ]add|uvx)\b[^\n;&|`)]*[ \t"']pocketvlm(?![\w./-])  # an argument of an installer
    |(?<![\w./-])pocketvlm\[""",
    re.VERBOSE,
)
# An extra that is made of others, as the packaging of Python demands it; and tests of such names.
ALLOWED = {
    "pyproject.toml",
    "scripts/setup_venv.py",
    "tests/test_setup.py",
    "tests/test_wheels.py",
    "tests/test_no_index.py",
}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [name for name in listed.decode().split("\0") if name and name not in ALLOWED]


def test_nothing_names_pocketvlm_to_pip() -> None:
    named = []
    for name in tracked():
        if (path := ROOT / name).suffix in (".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ".html", ".ts", ""):
            text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
            # With --no-index, the name is looked for in a folder of wheels alone.
            named += [
                f"{name}: {match[0]}"
                for match in NAMED.finditer(text)
                if "--no-index" not in text[text.rfind("\n", 0, match.start()) + 1 : match.end() + 40]
            ]
    assert not named


@pytest.mark.parametrize(
    "text",
    [
        'pip install "pocketvlm[server]"',
        "pip install pocketvlm",
        "venv/bin/pip install --no-index --find-links wheels 'pocketvlm'",
        "pipx install pocketvlm",
        "needs pocketvlm[hub]",
    ],
)
def test_what_it_finds(text: str) -> None:
    assert NAMED.search(text)


@pytest.mark.parametrize(
    "text", ['pip install ".[server]"', "pip install . && pocketvlm doctor", "pip install ./wheels/pocketvlm-1.whl"]
)
def test_what_it_allows(text: str) -> None:
    assert not NAMED.search(text)


def test_extras_of_messages_exist() -> None:
    known = missing_packages()
    assert {"convert", "server", "hub", "heif", "documents", "video"} <= known.keys() and "dev" not in known
    assert install_extra("server", "hub").startswith('run pip install ".[server,hub]"')
