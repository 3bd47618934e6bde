"""Several models: which is loaded, which leaves, and what becomes of requests meanwhile. All engines are real."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from engine_seam import engine_of
from pocketvlm import VLM
from pocketvlm.errors import EngineClosedError, MemoryBudgetError, QueueFullError
from pocketvlm.files.locate import locate
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server import endpoint, served_model
from pocketvlm.server.endpoint import Answers
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.model_facts import ModelFacts, read_facts
from pocketvlm.server.models import Lease, Models
from pocketvlm.server.pictures import Pictures
from pocketvlm.server.protocols.chat_completions import ChatCompletions
from pocketvlm.server.protocols.ollama.routes import _use
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.seen import Seen
from pocketvlm.server.served_model import ModelSource
from pocketvlm.server.settings import Settings
from waiting import LIMIT, wait_until

T = TypeVar("T")
HI = [{"role": "user", "content": "hi"}]


def iota() -> VLM:
    return VLM.load(context_size=512, threads=1, verify=False, vision="gguf")


def facts(name: str) -> ModelFacts:
    return read_facts(locate(None, model=None, mmproj=None, verify=False), name=name)


def pool(sizes: Mapping[str, int], memory: int | None, *, load: Callable[[], VLM] = iota, **settings: Any) -> Models:
    """Models of these sizes, in any unit, none of them loaded yet."""
    sources = [ModelSource(facts(name), load, size) for name, size in sizes.items()]
    return Models(sources, Settings(**{"slots": 2, **settings}), memory)


def run(models: Models, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(asyncio.wait_for(work(), 120))
    finally:
        models.close()


async def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


async def use(models: Models, name: str, keep_alive: float | None = None) -> Lease:
    """Answer one request."""
    lease = await models.lease(models.named(name), keep_alive)
    try:
        await asyncio.to_thread(lease.vlm.chat, HI, max_tokens=1)
    finally:
        lease.release()
    return lease


async def settled(models: Models) -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await until(lambda: not any(model.state in ("loading", "unloading") for model in models))


def states(models: Models) -> dict[str, str]:
    return {model.name: model.state for model in models}


# ---- who is loaded


def test_the_memory_of_a_gpu_is_part_of_all() -> None:
    """As Ollama's clients read it: what a model takes, and how much of that is on a GPU."""
    [model] = pool({"a": 1000}, None)
    with iota() as vlm:
        model.adopt(vlm)
        assert (_use(model, 3000)["size"], _use(model, 3000)["size_vram"]) == (3000, 0)
        vlm._engine._info = replace(vlm.info, device_bytes=5000)  # type: ignore[attr-defined]
        assert (_use(model, 3000)["size"], _use(model, 3000)["size_vram"]) == (8000, 5000)
        assert (_use(model, None)["size"], _use(model, None)["size_vram"]) == (5000, 5000)


def test_the_least_recently_used_leaves() -> None:
    models = pool({"a": 1, "b": 1, "c": 1}, 2)

    async def work() -> None:
        for name in "aba":
            await use(models, name)
        assert states(models) == {"a": "ready", "b": "ready", "c": "unloaded"}
        old = models.named("b").vlm
        await use(models, "c")
        assert states(models) == {"a": "ready", "b": "unloaded", "c": "ready"}
        with pytest.raises(EngineClosedError):
            old.chat(HI)
        await use(models, "b")
        assert states(models) == {"a": "unloaded", "b": "ready", "c": "ready"}
        assert [model.loads for model in models] == [1, 2, 1]

    run(models, work)


def test_only_as_many_leave_as_need_to() -> None:
    """The small one was not used for longest, but the room of the large one is enough."""
    models = pool({"small": 1, "large": 3, "wanted": 3}, 4)

    async def work() -> None:
        for name in ("small", "large", "wanted"):
            await use(models, name)
        assert states(models) == {"small": "ready", "large": "unloaded", "wanted": "ready"}

    run(models, work)


def test_without_a_limit_all_stay() -> None:
    models = pool({"a": 1, "b": 1, "c": 1}, None)

    async def work() -> None:
        for name in "abc":
            await use(models, name)
        assert set(states(models).values()) == {"ready"}

    run(models, work)


def test_where_memory_is_unknown_one_is_loaded_at_a_time() -> None:
    models = pool({"a": 0, "b": 0, "c": 0}, 0)

    async def work() -> None:
        for name in "abc":
            await use(models, name)
            assert [name for name, state in states(models).items() if state == "ready"] == [name]

    run(models, work)


def test_two_requests_load_it_once() -> None:
    models = pool({"a": 1, "b": 1}, 2)

    async def work() -> None:
        first, second = await asyncio.gather(use(models, "b"), use(models, "b"))
        assert models.named("b").loads == 1
        assert first.load_ms > 0
        assert second.load_ms > 0
        assert (await use(models, "b")).load_ms == 0

    run(models, work)


def test_another_model_answers_while_one_is_loaded() -> None:
    gate = threading.Event()

    def slowly() -> VLM:
        gate.wait(60)
        return iota()

    sources = [ModelSource(facts("a"), iota, 1), ModelSource(facts("b"), slowly, 1)]
    models = Models(sources, Settings(), 2)

    async def work() -> None:
        await use(models, "a")
        waiting = asyncio.create_task(use(models, "b"))
        await until(lambda: models.named("b").state == "loading")
        assert models.named("b").waits_for() == "loading b"
        await use(models, "a")
        assert not waiting.done()
        gate.set()
        lease = await waiting
        assert lease.load_ms > lease.queue_ms

    run(models, work)


# ---- who waits


def test_a_busy_model_ends_its_requests_before_it_leaves() -> None:
    """Those that come after the other model was asked for wait until it has had its turn."""
    models = pool({"a": 1, "b": 1}, 1)

    async def work() -> None:
        order: list[str] = []

        async def ask(name: str, label: str) -> None:
            await use(models, name)
            order.append(label)

        held = [await models.lease(models.named("a")) for _ in range(2)]
        early = asyncio.create_task(ask("a", "early"))
        await asyncio.sleep(0)
        other = asyncio.create_task(ask("b", "other"))
        await asyncio.sleep(0)
        late = asyncio.create_task(ask("a", "late"))
        await asyncio.sleep(0.05)
        assert states(models) == {"a": "ready", "b": "unloaded"}
        assert models.named("b").waits_for() == "loading b"
        for lease in held:
            lease.release()
        await asyncio.gather(early, other, late)
        assert order == ["early", "other", "late"]
        assert (models.named("a").loads, models.named("b").loads) == (2, 1)

    run(models, work)


def test_a_model_never_starves_behind_a_busy_one() -> None:
    """Clients of one that never pause, so that it is never idle, do not keep another out."""
    models = pool({"a": 1, "b": 1}, 1)

    async def work() -> None:
        over = False
        served = 0

        async def insist() -> None:
            nonlocal served
            while not over:
                await use(models, "a")
                served += 1

        clients = [asyncio.create_task(insist()) for _ in range(4)]
        await until(lambda: served >= 8)
        before = served
        await use(models, "b")
        assert served - before <= 4 + 2  # those that ran or waited
        await until(lambda: served >= before + 12)  # and they go on
        over = True
        await asyncio.gather(*clients)

    run(models, work)


def test_a_client_that_leaves_the_queue_closes_no_model() -> None:
    models = pool({"a": 1, "b": 1}, 1)

    async def work() -> None:
        held = await models.lease(models.named("a"))
        other = asyncio.create_task(use(models, "b"))
        await asyncio.sleep(0.02)
        late = asyncio.create_task(use(models, "a"))
        await asyncio.sleep(0.05)
        assert not late.done()
        other.cancel()
        await late  # although one still runs
        held.release()
        assert models.named("b").loads == 0

    run(models, work)


def test_a_client_that_leaves_does_not_stop_the_loading() -> None:
    models = pool({"a": 1, "b": 1}, 1)

    async def work() -> None:
        waiting = asyncio.create_task(use(models, "b"))
        await until(lambda: models.named("b").state == "loading")
        waiting.cancel()
        await until(lambda: models.named("b").state == "ready")
        assert (models.running, models.waiting) == (0, 0)
        assert (await use(models, "b")).load_ms == 0

    run(models, work)


def test_each_model_has_a_queue_of_its_own() -> None:
    models = pool({"a": 1, "b": 1}, 2, slots=1, queue=1)

    async def work() -> None:
        await use(models, "b")
        held = await models.lease(models.named("a"))
        waiting = asyncio.create_task(use(models, "a"))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await use(models, "a")
        await use(models, "b")
        held.release()
        await waiting

    run(models, work)


def test_counting_loads_a_model_and_waits_for_no_answer() -> None:
    models = pool({"a": 1, "b": 1}, 1, slots=1)

    async def work() -> None:
        held = await models.lease(models.named("a"))
        (await models.lease(models.named("a"), counts=True)).release()
        counting = asyncio.create_task(models.lease(models.named("b"), counts=True))
        await asyncio.sleep(0.05)
        assert states(models) == {"a": "ready", "b": "unloaded"}
        held.release()
        lease = await counting
        assert lease.load_ms > 0
        other = asyncio.create_task(use(models, "a"))
        await asyncio.sleep(0.05)
        assert models.named("b").state == "ready"  # it counts
        lease.release()
        await other

    run(models, work)


def test_a_request_that_only_loads_waits_for_no_answer() -> None:
    models = pool({"a": 1}, None, slots=1)

    async def work() -> None:
        held = await models.lease(models.first)
        (await models.lease(models.first, 70.0, only_loads=True)).release()
        assert models.first.keep_alive == 70.0
        held.release()

    run(models, work)


# ---- who is unloaded


def test_idle_models_are_unloaded() -> None:
    models = pool({"a": 1, "b": 1}, 2, idle_unload=0.3)

    async def work() -> None:
        held = await models.lease(models.named("a"))
        await use(models, "b")
        expires = models.named("b").expires_at
        assert expires is not None
        assert expires - time.time() <= 0.3
        await until(lambda: models.named("b").state == "unloaded")
        assert models.named("a").state == "ready"  # a request runs
        held.release()
        await until(lambda: models.named("a").state == "unloaded")
        assert models.named("a").expires_at is None
        await use(models, "a")

    run(models, work)


def test_by_default_one_model_stays_and_several_do_not() -> None:
    for names, keep_alive in (("a", None), ("ab", 300.0)):
        models = pool(dict.fromkeys(names, 1), None)
        assert {model.keep_alive for model in models} == {keep_alive}
    assert pool({"a": 1, "b": 1}, None, idle_unload=0).first.keep_alive is None


def test_keep_alive_of_a_request() -> None:
    """It holds until the next request of the model, and 0 waits for those that run."""
    models = pool({"a": 1, "b": 1}, 2)

    async def work() -> None:
        a = models.named("a")
        first = await models.lease(a, 0.0)
        second = await models.lease(a, 0.0)
        first.release()
        await asyncio.sleep(0.05)
        assert a.state == "ready"
        second.release()
        await until(lambda: a.state == "unloaded")
        await use(models, "a", -1)
        assert a.expires_at is None
        await use(models, "a")
        assert a.expires_at is not None
        assert a.expires_at - time.time() > 290

    run(models, work)


def test_unloading_by_name() -> None:
    models = pool({"a": 1}, None)

    async def work() -> None:
        a = models.first
        with pytest.raises(HTTPError, match="404 model_not_found"):
            models.unload("b")
        models.unload("a")  # does nothing
        lease = await models.lease(a)
        models.unload("a")
        await asyncio.sleep(0.05)
        assert a.state == "ready"
        lease.release()
        await until(lambda: a.state == "unloaded")
        await use(models, "a")
        models.unload("a")
        await use(models, "a")  # comes at the same time, and is answered
        assert a.state == "ready"

    run(models, work)


# ---- what fails


def test_a_model_that_cannot_be_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that wait get the reason, without a path. Others leave for it once, until it is tried again."""
    path = tmp_path / "later.gguf"
    sources = [ModelSource(facts("a"), iota, 1), ModelSource(facts("b"), lambda: VLM.load(path), 1)]
    models = Models(sources, Settings(slots=1), 1)

    async def work() -> None:
        failures = await asyncio.gather(*[use(models, "b") for _ in range(3)], return_exceptions=True)
        for error in failures:
            assert isinstance(error, HTTPError)
            assert (error.status, error.code, error.message) == (500, "model_error", "no such file")
        assert caplog.text.count("model b cannot be loaded: no such file") == 1
        b = models.named("b")
        assert (b.state, b.failure, b.load_failures) == ("failed", "no such file", 1)
        await use(models, "a")
        with pytest.raises(HTTPError, match="500 model_error"):
            await use(models, "b")
        assert (b.load_failures, states(models)) == (1, {"a": "ready", "b": "failed"})
        monkeypatch.setattr(served_model, "_RETRY_LOAD", 0.0)
        path.symlink_to(locate(None, model=None, mmproj=None, verify=False).model)
        await use(models, "b")
        assert (b.state, b.failure, models.running, models.waiting) == ("ready", "", 0, 0)

    run(models, work)


@pytest.mark.parametrize(
    "error, code",
    [(SystemExit(), "internal_error"), (MemoryBudgetError("does not fit", "memory", 1), "memory_budget")],
)
def test_no_error_of_loading_is_the_clients_fault(error: BaseException, code: str) -> None:
    """Nor is one lost, whatever its class."""

    def refuse() -> VLM:
        raise error

    models = pool({"a": 1}, None, load=refuse)

    async def work() -> None:
        with pytest.raises(HTTPError) as refused:
            await use(models, "a")
        assert (refused.value.status, refused.value.param, refused.value.code) == (500, None, code)
        assert states(models) == {"a": "failed"}

    run(models, work)


def test_an_engine_without_statistics_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pool({"a": 1}, None)

    async def work() -> None:
        lease = await use(models, "a")
        monkeypatch.setattr(lease.vlm, "statistics", lambda: 1 / 0)
        models.unload("a")
        await until(lambda: models.first.state == "unloaded")
        assert _is_closed(lease.vlm)
        await use(models, "a")

    run(models, work)


def test_a_model_stays_where_there_is_no_thread_to_unload_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "_RETRY_UNLOAD", 0.1)
    models = pool({"a": 1}, None)

    async def work() -> None:
        vlm = (await use(models, "a")).vlm
        with monkeypatch.context() as without:
            without.setattr(threading, "Thread", _no_thread)
            models.unload("a")
            await asyncio.sleep(0.05)
            assert states(models) == {"a": "ready"}
            assert models.first.vlm is vlm
        await until(lambda: models.first.state == "unloaded")
        assert _is_closed(vlm)

    run(models, work)


def _no_thread(**_: object) -> threading.Thread:
    raise RuntimeError("can't start new thread")


def _no_pictures(*_: object) -> Pictures:
    raise MemoryError


@pytest.mark.parametrize(
    "place, name, refuse", [(threading, "Thread", _no_thread), (endpoint, "Pictures", _no_pictures)]
)
def test_no_slot_is_lost_where_a_request_cannot_begin(
    monkeypatch: pytest.MonkeyPatch, place: object, name: str, refuse: object
) -> None:
    models = pool({"a": 1}, None)

    async def work() -> None:
        await use(models, "a")
        with monkeypatch.context() as without:
            without.setattr(place, name, refuse)
            with pytest.raises(HTTPError, match="503 system_limit"):
                await Reply(models).post(messages=HI)
        assert models.running == 0

    run(models, work)


def test_closing_ends_what_is_being_loaded() -> None:
    gate, loaded = threading.Event(), list[VLM]()

    def slowly() -> VLM:
        gate.wait(60)
        loaded.append(iota())
        return loaded[0]

    models = pool({"a": 1}, None, load=slowly)

    async def work() -> None:
        task = asyncio.create_task(use(models, "a"))
        await until(lambda: models.first.state == "loading")
        task.cancel()

    run(models, work)
    gate.set()
    wait_until(lambda: loaded and _is_closed(loaded[0]))


def _is_closed(vlm: VLM) -> bool:
    try:
        vlm.chat(HI, max_tokens=1)
    except EngineClosedError:
        return True
    return False


def test_races() -> None:
    """Requests that come, leave and unload at random moments: each is answered by an open model, no slot is lost."""
    dice = random.Random(0)
    models = pool({"a": 1, "b": 1, "c": 2}, 3)

    async def work() -> None:
        most = 0

        async def client(name: str) -> None:
            nonlocal most
            lease = await models.lease(models.named(name), dice.choice([None, None, 0.0, 0.01, -1.0]))
            most = max(most, sum(model.source.memory for model in models if model.has_memory))
            try:
                assert models.named(name).state == "ready"
                if dice.random() < 0.3:
                    await asyncio.to_thread(lease.vlm.chat, HI, max_tokens=1)
                else:
                    await asyncio.sleep(dice.random() * 0.01)
                assert engine_of(lease.vlm).statistics().state == "ok"
            finally:
                lease.release()

        tasks: list[asyncio.Task[None]] = []
        for _ in range(300):
            tasks.append(asyncio.create_task(client(dice.choice("abc"))))
            if dice.random() < 0.3:
                dice.choice(tasks).cancel()
            if dice.random() < 0.1:
                models.unload(dice.choice("abc"))
            await asyncio.sleep(dice.choice([0, 0, 0.01, 0.03]))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [result for result in results if isinstance(result, Exception)]
        assert sum(result is None for result in results) > 150
        assert (models.running, models.waiting) == (0, 0)
        assert most == 3
        for name in "abc":
            await use(models, name)

    run(models, work)


# ---- what clients see


class Reply:
    """What the endpoint sends for one body."""

    def __init__(self, models: Models) -> None:
        self._endpoint = Answers(models, Settings(), PictureHandles()).endpoint(ChatCompletions.parse)
        self.received: list[bytes] = []

    async def post(self, **body: Any) -> None:
        requests = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

        async def receive() -> Any:
            return next(requests, None) or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message.get("body"):
                self.received.append(message["body"])

        scope: dict[str, Any] = {"type": "http", "headers": []}
        RequestRecord("id").open(scope)
        await self._endpoint(scope, receive, send)


def test_a_stream_says_that_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "HEAD_AFTER", 0.02)
    monkeypatch.setattr(endpoint, "SILENCE", 0.02)
    gate = threading.Event()

    def slowly() -> VLM:
        gate.wait(60)
        return iota()

    models = pool({"a": 1, "b": 1}, 2, load=slowly)

    async def work() -> None:
        reply = Reply(models)
        asking = asyncio.create_task(reply.post(model="b", messages=HI, stream=True, max_tokens=1))
        await until(lambda: len(reply.received) >= 2)
        assert set(reply.received) == {b": loading b\n\n"}
        gate.set()
        await asking
        last = b"".join(reply.received).split(b"\n\n")[-3]
        assert json.loads(last.removeprefix(b"data: "))["timings"]["load_ms"] > 20

    run(models, work)


def test_facts_are_read_without_loading() -> None:
    known = facts("mine")
    with VLM.load() as vlm:
        assert (known.name, known.vision, known.context_size) == ("mine", vlm.info.has_vision, vlm.info.context_size)
        assert known.fingerprint == vlm.info.fingerprint
    assert (known.architecture, known.quantization, known.parameters) == ("llama", "Q4_K_M", 2_539_520)
    assert known.capabilities == ("completion", "vision", "tools")


def test_names() -> None:
    models = pool({"a": 1, "b": 1}, 2)
    assert models.asked(None) is models.asked("") is models.asked("a") is models.first
    assert models.asked("b") is models.named("b")
    with pytest.raises(HTTPError, match="404 model_not_found") as refused:
        models.asked("other")
    assert "a or b" in refused.value.message
    alone = pool({"a": 1}, None)
    assert alone.asked("other") is alone.first
    with pytest.raises(HTTPError):
        pool({"a": 1}, None, strict_model=True).asked("other")


def test_statistics_outlive_their_engine() -> None:
    models = pool({"a": 1, "b": 1}, 1)

    async def work() -> None:
        for name in "ababa":
            await use(models, name)
        by_name = {model.name: statistics for model, statistics in await asyncio.to_thread(models.statistics)}
        assert (by_name["a"].finished, by_name["b"].finished) == (3, 2)
        assert (by_name["a"].running, by_name["b"].running) == (0, 0)

    run(models, work)


def test_nothing_is_drawn_for_a_client_that_has_left() -> None:
    """It may have waited for the pictures of others."""

    async def leave() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path_params": {"id": "sha256:0"}, "query_string": b"", "headers": []}
    seen = Seen(pool({"a": 1}, None), PictureHandles(), Settings())
    with pytest.raises(ClientDisconnect):
        asyncio.run(seen.show(Request(scope, leave)))
