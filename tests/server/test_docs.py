"""What docs/server.md shows is well-formed, and names options that exist."""

from __future__ import annotations

import configparser
import inspect
import plistlib
import re

import pytest

from conftest import ROOT
from pocketvlm.cli.serve import serve

TEXT = (ROOT / "docs" / "server.md").read_text("utf-8")
OPTIONS = {"--" + name.replace("_", "-") for name in inspect.signature(serve).parameters} | {"--help"}
CURL = {"--data-binary"}


def block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--[a-z][a-z-]+", TEXT)) - CURL))
def test_options_exist(option: str) -> None:
    assert option in OPTIONS


def test_the_launchd_example() -> None:
    told = plistlib.loads(block("xml").encode())
    assert told["ProgramArguments"][1] == "serve"
    assert told["ExitTimeOut"] > 30


def test_the_systemd_example() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block("ini"))
    assert " serve " in unit["Service"]["ExecStart"]
    assert int(unit["Service"]["TimeoutStopSec"]) > 30
