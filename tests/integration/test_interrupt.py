"""Ctrl-C while a model is loaded and measured in the main thread: Python sees it first in a callback of native code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketvlm import VLM
from pocketvlm.native import log, mtmd


class Pressing:
    """In place of a list of lines."""

    def append(self, _line: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def as_in_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # so that encoders are measured


def test_while_native_code_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_captures", [Pressing()])
    with pytest.raises(KeyboardInterrupt):
        VLM.load(verify=False)


def test_while_libmtmd_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    make = mtmd._node_callback
    nodes = 0

    def pressing(*given: Any) -> Callable[..., bool]:
        look = make(*given)

        def pressed(*asked: Any) -> bool:
            nonlocal nodes
            nodes += 1
            if nodes == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return bool(look(*asked))

        return pressed

    monkeypatch.setattr(mtmd, "_node_callback", pressing)
    with pytest.raises(KeyboardInterrupt):
        VLM.load(verify=False)
    assert 0 < nodes < 100  # it was stopped, not waited for
