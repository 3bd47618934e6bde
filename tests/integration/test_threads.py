"""Answers do not depend on how many threads evaluate a step where they must not, and the engine says how many did."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_seam import local
from pocketvlm import VLM
from pocketvlm.engine.in_process import adapts_threads
from pocketvlm.engine.interface import EngineOptions
from pocketvlm.engine.loading.device_placement import DevicePlacement
from pocketvlm.engine.scheduling import step
from pocketvlm.engine.scheduling.prefill_budget import PrefillBudget
from pocketvlm.engine.scheduling.thread_count import ThreadCountPolicy
from pocketvlm.engine.speculative.draft_length import draft_length_policy
from pocketvlm.files.cache_type import CacheType
from pocketvlm.native.context import Context, Logits
from pocketvlm.native.llama import Model
from pocketvlm.system.machine import idle_seconds

PROMPT = np.random.default_rng(0).integers(10, 600, 700).tolist()  # over 512 cells, where attention is split
ASKED = [{"role": "user", "content": "What colours can you name?"}]


def evaluate(path: Path, cache_type: CacheType, threads: tuple[int, ...]) -> list[Logits]:
    """Evaluate a prompt in batches, then some tokens one by one, with these numbers of threads in turns."""
    model, numbers = Model(path, gpu_layers=0), cycle(threads)
    context = Context(model, n_ctx=1024, n_batch=512, threads=2, cache_type=cache_type, outputs=1)
    logits = []
    for start in (0, 512):
        context.set_threads(next(numbers))
        context.decode_tokens(PROMPT[start : start + 512], start)
        logits.append(context.logits())
    for index, token in enumerate(PROMPT[:6], len(PROMPT)):
        context.set_threads(next(numbers))
        context.decode_token(token, index)
        logits.append(context.logits())
    model.close()
    return logits


@pytest.mark.parametrize("kind", ["Q4_K_M", "F32"])
def test_exact_logits_do_not_depend_on_threads(iota_bundle: Path, iota_onnx: Path, kind: str) -> None:
    """Bit for bit: each row of a product is computed by one thread, and nothing is added up across threads."""
    path = iota_bundle / "model-Q4_K_M.gguf" if kind == "Q4_K_M" else iota_onnx / "model-F32.gguf"
    expected = evaluate(path, "f32", (1,))
    for threads in ((2,), (1, 2), (2, 1, 1), (3,)):
        assert all(map(np.array_equal, evaluate(path, "f32", threads), expected)), threads


class Alternating(ThreadCountPolicy):
    """Changes its mind at each step."""

    def next_count(self, _: float) -> int:
        self.count = 3 - self.count
        return self.count


def ask(vlm: VLM) -> list[tuple[str, float]]:
    entries: Any = vlm.chat(ASKED, max_tokens=24, ignore_eos=True, logprobs=True).choices[0].logprobs
    return [(entry.token, entry.logprob) for entry in entries.content]


def test_an_exact_engine_may_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with VLM.load(exact=True, threads=2, context_size=512) as vlm:
        expected = ask(vlm)
    monkeypatch.setattr(step, "ThreadCountPolicy", Alternating)
    with VLM.load(exact=True, threads=2, context_size=512) as vlm:
        assert ask(vlm) == expected
        statistics = vlm.statistics()
        assert statistics.steps == 23  # the first token is the prompt's
        assert statistics.threads_of_steps == 1 * 12 + 2 * 11
        assert vlm.info.threads == 2


def test_a_trial_has_no_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are compared with others, so they have as many rows."""

    class Comparing(ThreadCountPolicy):
        compares = True  # type: ignore[assignment]

        def record(self, rows: int, *_: float) -> None:
            seen.append(rows)

    seen: list[int] = []
    with VLM.load(threads=2, context_size=512, speculate="on") as vlm:
        ask(vlm)
        assert vlm.statistics().drafted_tokens
    monkeypatch.setattr(step, "ThreadCountPolicy", Comparing)
    with VLM.load(threads=2, context_size=512, speculate="on") as vlm:
        ask(vlm)
        assert not vlm.statistics().drafted_tokens
    assert seen == [1] * 23


def test_a_prompt_has_the_threads_of_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class One(ThreadCountPolicy):
        def prompt_count(self, _: float) -> int:
            return 1

    counts: list[int] = []
    set_threads = Context.set_threads

    def seen(self: Context, count: int) -> None:
        counts.append(count)
        set_threads(self, count)

    monkeypatch.setattr(step, "ThreadCountPolicy", One)
    monkeypatch.setattr(Context, "set_threads", seen)
    with VLM.load(threads=2, context_size=512) as vlm:
        vlm.chat(ASKED, max_tokens=1)
    assert counts == [1]


def test_idle_seconds() -> None:
    before = idle_seconds()
    if before is None:
        pytest.skip("not known on this system")
    after = idle_seconds()
    assert after is not None and after >= before >= 0


def test_steps_without_room_for_prompts_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where answers and prompts cannot be in one batch, as with hybrid models."""

    class Recording(ThreadCountPolicy):
        def record(self, rows: int, *_: float) -> None:
            seen.append(rows)

    seen: list[int] = []
    rows = PrefillBudget.rows
    monkeypatch.setattr(step, "ThreadCountPolicy", Recording)
    monkeypatch.setattr(PrefillBudget, "rows", lambda self, answers, *a, **k: 0 if answers else rows(self, 0, *a, **k))
    with VLM.load(threads=2, context_size=512, parallel=2, speculate="off") as vlm:
        local(vlm)._context.needs_equal_counts = True
        stream = vlm.stream(ASKED, max_tokens=24, ignore_eos=True)
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(vlm.chat, ASKED, max_tokens=1)
            list(stream)
            later.result()
    assert len(seen) == 23


@pytest.mark.parametrize(
    ("options", "layers", "system", "adapts"),
    [
        (EngineOptions(), 0, "linux", True),
        (EngineOptions(), 1, "linux", False),
        (EngineOptions(), 0, "win32", False),
        (EngineOptions(exact=True), 0, "linux", True),
        (EngineOptions(exact=True, speculate="on"), 0, "linux", False),
        (EngineOptions(speculate="on"), 0, "linux", True),
    ],
)
def test_where_the_number_adapts(
    options: EngineOptions, layers: int, system: str, adapts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    policy = draft_length_policy(options.speculate, exact=options.exact, needs_checkpoints=False)
    assert adapts_threads(options, DevicePlacement(None, layers, False, ""), policy) is adapts
