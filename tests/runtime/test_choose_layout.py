"""Which layout of weights is chosen from measured times, and what has no choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketvlm.engine.loading import choose_layout as layouts
from pocketvlm.engine.loading.choose_layout import choose_layout, fastest
from pocketvlm.engine.loading.layer_benchmark import LayerSpeed
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.weight_layout import WeightLayout

REORDERED, PLAIN, ACCELERATED, BOTH = WeightLayout


def speeds(*times: tuple[float, float], steady: bool = True) -> dict[WeightLayout, LayerSpeed]:
    return {layout: LayerSpeed(*pair, steady) for layout, pair in zip(WeightLayout, times, strict=False)}


def test_the_shortest_request_whose_answers_are_as_fast() -> None:
    assert fastest(speeds((3.0, 10.0), (2.0, 10.4), (1.0, 10.4))) is ACCELERATED
    assert fastest(speeds((3.0, 10.0), (2.0, 11.0), (1.0, 11.0))) is REORDERED  # answers would be slower
    assert fastest(speeds((3.0, 10.0), (1.0, 10.0), (2.0, 10.0))) is PLAIN
    assert fastest(speeds((3.0, 10.0), (2.0, 11.0), (1.0, 11.0), (1.5, 10.0))) is BOTH


def test_disturbed_times_do_not_change_answers() -> None:
    assert fastest(speeds((3.0, 10.0), (2.0, 5.0), (1.0, 5.0), steady=False)) is REORDERED
    assert fastest(speeds((3.0, 10.0), (2.0, 5.0), (1.0, 5.0), (2.5, 10.0), steady=False)) is BOTH
    alone = {REORDERED: LayerSpeed(3.0, 10.0, False), ACCELERATED: LayerSpeed(1.0, 10.0, False)}
    assert fastest(alone) is ACCELERATED  # the same answers


def test_measured_once(iota_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model has libllama's default; of a larger one the layers are timed, and the choice is remembered."""
    header = read_header(next(iota_bundle.glob("model-*.gguf")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choose_layout(header, threads=1) is REORDERED and not layouts.recall_all()
    monkeypatch.setattr(layouts, "_SMALLEST", 1)
    monkeypatch.setattr(layouts, "_TRIES", 1)  # whatever else the machine does
    assert choose_layout(header, threads=1, exact=True) is REORDERED and not layouts.recall_all()
    assert choose_layout(header, threads=1, measure="never") is REORDERED and not layouts.recall_all()
    chosen = choose_layout(header, threads=1)
    (entry,) = layouts.recall_all()
    assert entry["layout"] == chosen.value and entry["file"] == header.path.name
    assert set(entry["milliseconds"]) == {layout.value for layout in layouts.candidates(header)}
    monkeypatch.setattr(layouts, "_measure", None)  # would fail if it were called
    assert choose_layout(header, threads=1) is chosen


def test_what_is_measured_again(iota_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disturbed times at the next two loads, and a measurement that was stopped at each."""
    header = read_header(next(iota_bundle.glob("model-*.gguf")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(layouts, "_SMALLEST", 1)
    monkeypatch.setattr(layouts, "candidates", lambda _: list(WeightLayout))
    results = [None, *[speeds((3.0, 10.0), (2.0, 11.0), (1.0, 11.0), (1.5, 10.0), steady=False)] * 3]
    monkeypatch.setattr(layouts, "_measure", lambda *_: results.pop(0))
    chosen = [choose_layout(header, threads=1) for _ in range(5)]
    assert chosen == [REORDERED, BOTH, BOTH, BOTH, BOTH] and not results
    assert choose_layout(header, threads=1, measure="never") is BOTH


def test_layers_that_cannot_run_alone(iota_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libllama's default then, and no second try."""
    header = read_header(next(iota_bundle.glob("model-*.gguf")))
    broken = replace(header, path=tmp_path / "none.gguf")  # the process that measures cannot read it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(layouts, "_SMALLEST", 1)
    monkeypatch.setattr(layouts, "file_hash", str)
    assert choose_layout(broken, threads=1) is REORDERED
    (entry,) = layouts.recall_all()
    assert entry["milliseconds"] == {}
    monkeypatch.setattr(layouts, "_measure", None)
    assert choose_layout(broken, threads=1) is REORDERED
