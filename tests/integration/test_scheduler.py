"""Many requests on one engine in this process: batching, fairness, cancelling, shared prefixes, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine_seam import local, sequence_pool, unread_events, usual_step, vision_of
from integration.asking import asked, disc, generation, settle
from pocketvlm import VLM
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import EncodeProgress, Finished, PrefillDone, Token
from pocketvlm.errors import EngineBusyError, GenerationCancelledError
from pocketvlm.system.allocator import return_free_blocks
from tiers import slow_but

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, parallel=4, context_size=1024, threads=2, picture_cache_size=1 << 20) as loaded:
        yield loaded


@pytest.fixture
def engine(vlm: VLM) -> Iterator[InProcessEngine]:
    """The engine of `vlm`, which must be idle before and after."""
    settle(vlm)
    yield local(vlm)
    settle(vlm)


@pytest.mark.usefixtures("engine")
def test_each_client_is_told_about_its_own_picture(vlm: VLM) -> None:
    def ask(number: int) -> tuple[str, str]:
        colour = COLOURS[number % len(COLOURS)]
        return colour, vlm.chat(asked("What colour is the circle?", disc(colour, number))).text

    with ThreadPoolExecutor(16) as pool:
        for colour, answer in pool.map(ask, range(48)):
            assert answer.lower() == colour


def test_together_as_alone(iota_bundle: Path) -> None:
    """Answers do not depend on who else is served."""
    questions = [asked("Describe the picture.", disc(COLOURS[i % 4], i, (200 + 30 * i, 150))) for i in range(6)]
    with VLM.load(iota_bundle, exact=True) as alone:
        expected = [alone.chat(question).text for question in questions]
    with VLM.load(iota_bundle, exact=True, parallel=3, context_size=1024) as many, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda question: many.chat(question).text, questions)) == expected


def test_a_stream_goes_on_while_a_picture_is_encoded(vlm: VLM, engine: InProcessEngine) -> None:
    encoding = threading.Event()
    release = threading.Event()
    vision = vision_of(vlm)
    original = vision.prepare

    def slow(*arguments: Any, **options: Any) -> Any:
        seen = original(*arguments, **options)
        encode = seen.encode

        def wait(slot: Any) -> Any:
            encoding.set()
            release.wait(60)
            return encode(slot)

        seen.encode = wait
        return seen

    with closing(
        engine.generate(generation(vlm, asked("Describe the picture.", disc("red")), 400, endless=True))
    ) as one:
        while not isinstance(next(one), Token):
            pass
        vision.prepare = slow
        try:
            answers: list[str] = []
            question = asked("What colour is the circle?", disc("blue", 7))
            other = threading.Thread(target=lambda: answers.append(vlm.chat(question).text))
            other.start()
            assert encoding.wait(60)
            assert sum(isinstance(next(one), Token) for _ in range(100)) == 100
            assert not answers
        finally:
            vision.prepare = original
            release.set()
        other.join()
    assert answers == ["Blue"]


def test_tokens_that_nobody_reads_come_with_the_end(vlm: VLM, engine: InProcessEngine) -> None:
    ask = generation(vlm, asked("Hi"), 12, endless=True)
    said, when = {}, {}
    for buffered in (False, True):
        events: list[Any] = []
        steps: list[int | None] = []
        over = threading.Event()

        def sink(event: Any, events: list[Any] = events, steps: list[int | None] = steps, over: Any = over) -> None:
            events.append(event)
            steps.append(engine.progress[0])
            if not isinstance(event, PrefillDone | Token):
                over.set()

        engine.submit(replace(ask, buffered=buffered), sink)
        assert over.wait(60)
        said[buffered] = [event.id for event in events if isinstance(event, Token)]
        when[buffered] = [step for event, step in zip(events, steps, strict=True) if isinstance(event, Token)]
        assert [type(event) for event in events] == [PrefillDone, *[Token] * 12, Finished]
    assert said[True] == said[False]
    assert len(set(when[False])) == 12
    assert when[True][0] != when[True][1] and len(set(when[True][1:])) == 1


@pytest.mark.parametrize("count", slow_but([60, 300], 60))
def test_cancelling_at_any_stage_loses_no_sequence(vlm: VLM, engine: InProcessEngine, count: int) -> None:
    """Queued, encoding, in the prompt, answering: the lanes come back, and what is kept of the cache is right."""
    rng = Random(1)
    before = engine.statistics()
    asks = [generation(vlm, asked("word " * 200, disc("red", i, (300, 200))), 50, endless=True) for i in range(12)]
    stages = {"queued": 0, "encoding": 0, "prompt": 0, "answer": 0}

    def disturb(number: int) -> str:
        events = engine.generate(asks[rng.randrange(len(asks))])
        stage = "queued"
        wanted = number % 12
        with closing(events):
            for seen, event in enumerate(events):
                stage = {EncodeProgress: "encoding", PrefillDone: "prompt", Token: "answer"}[type(event)]
                if seen >= wanted:
                    break
        return stage

    def leave_queue(_: int) -> str:
        """Withdrawn before any event."""
        job = engine.submit(asks[0], lambda _: None)
        engine.withdraw(job)
        return "queued"

    with ThreadPoolExecutor(12) as pool:
        for stage in pool.map(lambda i: leave_queue(i) if i % 5 == 0 else disturb(i), range(count)):
            stages[stage] += 1
    settle(engine)
    assert all(stages.values()), stages
    assert sequence_pool(vlm).free == 4
    after = engine.statistics()
    assert after.cancelled - before.cancelled + after.finished - before.finished == count
    for colour in COLOURS:
        assert vlm.chat(asked("What colour is the circle?", disc(colour))).text.lower() == colour


def test_a_cancelled_encode_does_not_spoil_the_next(vlm: VLM, engine: InProcessEngine) -> None:
    for seed in range(30):
        with closing(engine.generate(generation(vlm, asked("?", disc("red", 100 + seed, (640, 480)))))) as events:
            assert isinstance(next(events), EncodeProgress)
        colour = COLOURS[seed % 4]
        assert vlm.chat(asked("What colour is the circle?", disc(colour, 100 + seed))).text.lower() == colour


@pytest.mark.usefixtures("engine")
def test_a_prefix_is_found_in_any_lane(vlm: VLM) -> None:
    picture = disc("green", 4242, (200, 150))
    first = vlm.chat(asked("What colour is the circle?", picture))
    assert first.timings.images[0].cache == "none"
    # Other chats come between, each in a lane of its own.
    for seed in range(3):
        vlm.chat(asked("What colour is the circle?", disc("red", 4300 + seed)))
    again = vlm.chat(asked("What colour is the circle?", picture))
    assert again.timings.images[0].cache == "kv"
    assert again.text == first.text == "Green"


def test_a_prefix_is_shared_with_a_lane_that_is_busy(vlm: VLM, engine: InProcessEngine) -> None:
    picture = disc("yellow", 777, (200, 150))
    ask = generation(vlm, asked("Describe the picture.", picture), 600, endless=True)
    with closing(engine.generate(ask)) as stream:
        while not isinstance(next(stream), Token):
            pass
        answer = vlm.chat(asked("What colour is the circle?", picture))
        assert engine.statistics().running == 1, "the first stream must still run"
    assert answer.timings.images[0].cache == "kv"
    assert answer.timings.images[0].encode_ms == 0
    assert answer.text == "Yellow"


def test_a_thread_does_not_wait_for_itself(vlm: VLM, engine: InProcessEngine) -> None:
    ask = generation(vlm, asked("Describe the picture."), 200, endless=True)
    streams = [engine.generate(ask) for _ in range(4)]
    for stream in streams:
        assert isinstance(next(stream), PrefillDone)
    with pytest.raises(EngineBusyError):
        next(engine.generate(ask))
    streams[0].close()
    with closing(engine.generate(ask)) as fifth:
        next(fifth)
    for stream in streams:
        stream.close()


def seconds_of_work(seconds: float) -> float:
    """Processor seconds of this process while the caller sleeps."""
    before = time.process_time()
    time.sleep(seconds)
    return time.process_time() - before


def test_a_reader_that_sleeps_makes_only_itself_wait(vlm: VLM, engine: InProcessEngine) -> None:
    ask = generation(vlm, asked("Describe the picture."), 300, endless=True)
    with closing(engine.generate(ask)) as sleeper:
        next(sleeper)
        assert len([e for e in engine.generate(ask) if isinstance(e, Token)]) == 300
        assert engine.statistics().running == 1
        until = time.monotonic() + 20  # on a busy machine it ends its last steps later
        while seconds_of_work(0.3) > 0.1:
            assert time.monotonic() < until, "nothing is to be done"
        assert len(unread_events(vlm)) > 0 and max(unread_events(vlm)) < 60
        assert len([e for e in sleeper if isinstance(e, Token)]) == 300


def test_cancel_reaches_all_that_run(vlm: VLM, engine: InProcessEngine) -> None:
    ask = generation(vlm, asked("Describe the picture."), 900, endless=True)

    def read() -> None:
        for _ in engine.generate(ask):
            pass

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(read) for _ in range(3)]
        while engine.statistics().running < 3:
            time.sleep(0.001)
        vlm.cancel()
        for one in waiting:
            assert isinstance(one.exception(60), GenerationCancelledError)


@pytest.mark.usefixtures("engine")
@pytest.mark.slow
def test_memory_after_many_pictures(vlm: VLM) -> None:
    def anonymous() -> int:
        """Bytes of this process that no file backs, without what is free."""
        return_free_blocks()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc")

    def ask(seed: int) -> None:
        vlm.chat(asked("What colour is the circle?", disc("red", 10_000 + seed, (300, 200))), max_tokens=2)

    # What is kept grows in every round. The allocator of four threads takes more pages in some of them.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(120)))
        used = [anonymous()]
        for first in (120, 200, 280):
            list(pool.map(ask, range(first, first + 80)))
            used.append(anonymous())
    least = min(after - before for before, after in pairwise(used))
    assert least < 80 * (24 << 10), "the embeddings of one picture have 48 KB, its pixels 180 KB"


def test_pictures_go_in_pieces_beside_a_stream(vlm: VLM, engine: InProcessEngine) -> None:
    """Rows of a picture go in calls of their own, in pieces: the answer is that of one piece."""
    colour_of = lambda seed: COLOURS[seed % 4]  # noqa: E731
    ask = generation(vlm, asked("Describe the picture."), 600, endless=True)
    with closing(engine.generate(ask)) as stream:  # somebody who reads: prompts are cut small
        while not isinstance(next(stream), Token):
            pass
        for seed in range(4):
            picture = disc(colour_of(seed), 900 + seed, (320, 240))
            assert vlm.chat(asked("What colour is the circle?", picture)).text.lower() == colour_of(seed)
    assert usual_step(vlm) is not None


def test_a_free_sequence_is_preferred_to_dropping_a_chat() -> None:
    from pocketvlm.engine.kv_cache.choose_sequence import SequenceChoice, choose_sequence
    from pocketvlm.engine.kv_cache.prefix_cache import CachedPrefix, CachedSequence

    def sequence(number: int, tokens: range, used: int, busy: bool = False) -> CachedSequence:
        content = CachedPrefix()
        for token in tokens:
            content.add(token)
        return CachedSequence(number, content, used, busy)

    def placed(sequences: list[CachedSequence], tokens: list[int], *, cut: bool = True) -> SequenceChoice:
        common = {one: min(one.content.common(tokens), len(tokens) - 1) for one in sequences}
        own = {one: count if cut or count == len(one.content.keys) else 0 for one, count in common.items()}
        return choose_sequence(sequences, len(tokens), own, common if cut else dict.fromkeys(sequences, 0))

    sequences = [sequence(0, range(100), 5), sequence(1, range(0), 0), sequence(2, range(50, 80), 3)]
    chosen = placed(sequences, [*range(10), *range(500, 600)])
    assert (chosen.sequence.id, chosen.known, chosen.source) == (1, 10, sequences[0])
    chosen = placed(sequences, [*range(100), 7, 8])
    assert (chosen.sequence.id, chosen.known, chosen.source) == (0, 100, None)
    chosen = placed(sequences, list(range(90)), cut=False)  # cannot be cut back
    assert (chosen.sequence.id, chosen.known) == (1, 0)
    chosen = placed([replace(sequences[0], busy=True), *sequences[1:]], list(range(80)))
    assert (chosen.sequence.id, chosen.known, chosen.source and chosen.source.id) == (1, 79, 0)


@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.05])
def test_pace_shrinks_and_recovers(cost: float) -> None:
    """`cost` is seconds a row; an answer's token takes 10 ms."""
    from pocketvlm.engine.scheduling.prefill_budget import PrefillBudget

    pace = PrefillBudget(512)
    assert pace.rows(0, False, urgent=False) == 512
    for _ in range(20):
        pace.record(0.010, 1, 0, False)
    longest, served = [], 0
    for _ in range(1000):
        rows = pace.rows(1, False, urgent=False)
        served += rows
        seconds = 0.010 + cost * rows
        longest.append(seconds)
        pace.record(seconds, 1, rows, False)
    assert served * cost > 0.1  # the prompt does go on
    assert max(longest[20:]) < max(0.031, 0.011 + cost)
    assert sum(seconds > 0.025 for seconds in longest) < 200
