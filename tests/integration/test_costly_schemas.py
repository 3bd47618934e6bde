"""A schema that occupies the compiler holds up nobody, and leaves with its request."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from engine_seam import local, prompt_of, trials_of
from integration.asking import asked
from pocketvlm import VLM
from pocketvlm.engine.interface import CancellationToken, Finished, Generation
from pocketvlm.engine.process.protocol import Cancel, EventReply, Failed, Generate, Reply
from pocketvlm.engine.process.worker import _Handler
from pocketvlm.errors import GenerationCancelledError, UnsupportedError
from pocketvlm.messages import ChatRequest
from pocketvlm.native.grammar import Constraint, SchemaRule
from pocketvlm.native.grammar_trial import GrammarTrials
from pocketvlm.native.sampler import Sampling
from pocketvlm.structured.schema import compile_schema

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, parallel=4, context_size=1024, threads=1) as loaded:
        yield loaded


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def unknown(limit: int) -> dict[str, Any]:
    """A schema of a kind that has to be tried."""
    return {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": limit}]}


def costly() -> dict[str, Any]:
    """A schema whose time any system's clock shows, about 0.1 s."""
    numbers = {f"p{i}": {"type": "integer", "multipleOf": 9_900 + i} for i in range(5)}
    return {"type": "object", "properties": numbers}


def occupy(vlm: VLM) -> int:
    """Let the next trials take for ever. Return the id of the process."""
    trials = trials_of(vlm)
    trials._seconds, number = 1000.0, len(trials._costs)  # of a schema that was not tried yet
    vlm.chat(asked("hi"), response_format=form(unknown(50 + number)), max_tokens=1)
    pid: int = trials._process._popen.pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def in_trial(vlm: VLM, act: Callable[[], None]) -> None:
    """Call `act` in another thread, once a trial has begun."""
    turn = trials_of(vlm)._turn

    def wait() -> None:
        end = time.monotonic() + 30
        while not turn.locked() and time.monotonic() < end:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait).start()


def is_over(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_two_at_once_in_the_engines_process(vlm: VLM) -> None:
    """As many as there are threads for them."""
    pid = occupy(vlm)
    outbox: SimpleQueue[Reply] = SimpleQueue()
    handler = _Handler(local(vlm), outbox)

    def ask(number: int, schema: dict[str, Any]) -> None:
        rule = SchemaRule("body", compile_schema(schema, "s").rule, "s")
        constraint = Constraint("%llguidance {}\nstart: body", "s", (rule,))
        generation = Generation(prompt_of(vlm, asked("hi")), Sampling(), max_tokens=2, constraint=constraint)
        handler.handle(Generate(number, generation))

    for number in range(3):  # the last one has no thread yet
        ask(number, unknown(10 + number))
    ask(3, {"type": "object"})
    while not isinstance(reply := outbox.get(timeout=60), EventReply) or not isinstance(reply.event, Finished):
        assert isinstance(reply, EventReply) and reply.id == 3
    assert not is_over(pid)
    for number in range(3):
        handler.handle(Cancel(number))
    failed = [outbox.get(timeout=60) for _ in range(3)]
    assert {reply.id for reply in failed if isinstance(reply, Failed)} == {0, 1, 2}
    assert {reply.error.name for reply in failed if isinstance(reply, Failed)} == {"GenerationCancelledError"}
    assert is_over(pid)
    ask(4, unknown(99))  # by a new process
    reply = outbox.get(timeout=60)
    assert isinstance(reply, EventReply) and reply.id == 4


def test_in_python(vlm: VLM) -> None:
    """Cancelled from another thread, or by Ctrl-C."""
    pid, cancellation = occupy(vlm), CancellationToken()
    request = ChatRequest.parse(asked("hi"), response_format=form(unknown(10)))
    in_trial(vlm, cancellation.stop)
    with pytest.raises(GenerationCancelledError):
        list(vlm.run(request, cancellation=cancellation))
    assert is_over(pid)
    pid = occupy(vlm)
    in_trial(vlm, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        vlm.chat(asked("hi"), response_format=form(unknown(11)))
    assert is_over(pid)
    assert vlm.chat(asked("hi"), response_format=form({"const": 1})).text == "1"


def test_over_budget(vlm: VLM) -> None:
    """A format is refused; a tool takes any object."""
    engine = local(vlm)
    engine._trials.close()
    engine._trials = GrammarTrials(seconds=1e-6)
    with pytest.raises(UnsupportedError, match="too much time or memory") as refused:
        vlm.chat(asked("hi"), response_format=form(costly()))
    assert refused.value.param == "response_format.json_schema.schema"
    function = {"name": "f", "parameters": {"properties": {"x": costly()}}}
    fields: dict[str, Any] = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    assert vlm.chat(asked("hi"), **fields, max_tokens=300).choices[0].message.tool_calls
    function["strict"] = True
    with pytest.raises(UnsupportedError) as refused:
        vlm.chat(asked("hi"), **fields)
    assert refused.value.param == "tools.0.function.parameters"
