"""What docs/server.md shows is well-formed, names options that exist, and runs; so do the examples of clients."""

from __future__ import annotations

import plistlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from conftest import ROOT
from pages import furnish, run, runnable
from pocketvlm.cli.serve import serve
from server.conftest import Server

PAGE = ROOT / "docs" / "server.md"
TEXT = PAGE.read_text("utf-8")
APP = typer.Typer()
APP.command()(serve)
OPTIONS = {
    option for parameter in get_command(APP).params for option in (*parameter.opts, *parameter.secondary_opts)
} | {"--help"}
CURL = {"--data-binary"}
ANSWER = (
    "A large red circle at the top left, a small blue star at the top right and the number 42 in green at the bottom.\n"
)


def block(kind: str) -> str:
    match = re.search(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert match
    return match[1]


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--[a-z][a-z-]+", TEXT)) - CURL))
def test_options_exist(option: str) -> None:
    assert option in OPTIONS


def test_the_launchd_example() -> None:
    service = plistlib.loads(block("xml").encode())
    assert service["ProgramArguments"][1] == "serve"
    assert service["ExitTimeOut"] > 30


def test_the_page_runs(npm: Path, server: Server, tmp_path: Path) -> None:
    furnish(tmp_path)
    (tmp_path / "node_modules").symlink_to(npm)
    run(runnable(PAGE), tmp_path, server.url)


def test_the_python_client(server: Server, sample_png: Path) -> None:
    assert client([sys.executable, str(ROOT / "examples" / "client.py"), str(sample_png), server.base]) == ANSWER


def test_the_javascript_client(npm: Path, server: Server, sample_png: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(npm)
    program = tmp_path / "client.mjs"
    program.write_text((ROOT / "examples" / "client.mjs").read_text("utf-8"), "utf-8")
    assert client(["node", str(program), str(sample_png), server.base]) == ANSWER


def client(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
