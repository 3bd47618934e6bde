"""An engine with each layout of weights gives the same answer, and says which it has; `exact` ones have the default."""

from __future__ import annotations

import pytest

from integration.asking import asked, disc
from pocketvlm import VLM
from pocketvlm.engine.loading import choose_layout, loader
from pocketvlm.native import library
from pocketvlm.native.weight_layout import WeightLayout

QUESTION = asked("What colour is the circle?", disc("red"))


def answer(layout: WeightLayout, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(loader, "choose_layout", lambda *_, **__: layout)
    with VLM.load(vision="gguf", threads=2) as vlm:
        assert vlm.info.layout == layout.value
        return vlm.chat(QUESTION, max_tokens=8).text


def test_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = [layout for layout in WeightLayout if library.accelerator().library or not layout.accelerated]
    answers = {answer(layout, monkeypatch) for layout in layouts}
    assert len(answers) == 1 and "red" in answers.pop().lower()


def test_exact_has_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_layout, "_SMALLEST", 1)
    with VLM.load(vision="gguf", threads=2, exact=True) as vlm:
        assert vlm.info.layout == "reordered"
