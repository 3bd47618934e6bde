"""Schemas are tried in a process of their own, which ends with its budget, its request or its owner."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import pytest

from pocketvlm.errors import EngineBusyError, EngineClosedError, EngineError, GenerationCancelledError, UnsupportedError
from pocketvlm.native import grammar_trial
from pocketvlm.native.grammar import Constraint, SchemaRule
from pocketvlm.native.grammar_trial import GrammarTrials
from pocketvlm.native.schema_cost import is_cheap
from pocketvlm.structured.schema import compile_schema
from pocketvlm.system.subprocess import start

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def rule(name: str = "body", *, weaker: str | None = None, limit: int = 5) -> SchemaRule:
    """One that is small, but not of a kind that always is."""
    compiled = compile_schema({"allOf": [{"type": "integer"}, {"maximum": limit}]}, "s")
    return SchemaRule(name, compiled.rule, f"tools.0.{name}", weaker)


def costly(name: str, *, weaker: str | None = None, limit: int = 0) -> SchemaRule:
    """One whose time any system's clock shows, about 0.1 s."""
    numbers = {f"p{i}": {"type": "integer", "multipleOf": 9_900 + 5 * limit + i} for i in range(5)}
    compiled = compile_schema({"type": "object", "properties": numbers}, "s")
    return SchemaRule(name, compiled.rule, f"tools.0.{name}", weaker)


def constraint(*rules: SchemaRule) -> Constraint:
    return Constraint("%llguidance {}\nstart: body", "response_format", rules)


@pytest.fixture
def trials() -> Iterator[GrammarTrials]:
    with closing(GrammarTrials(seconds=1000)) as made:
        yield made


def process_of(trials: GrammarTrials) -> subprocess.Popen[str]:
    assert trials._process is not None
    return trials._process._popen


CHEAP: list[dict[str, Any]] = [
    {"type": "object"},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,10}$", "maxLength": 10},
            "price": {"anyOf": [{"type": "number", "multipleOf": 0.25}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 10**6},
            "next": {"$ref": "#"},
        },
    },
    {"enum": [f"value {i}" for i in range(500)]},
]
UNKNOWN: list[dict[str, Any]] = [
    {"allOf": [{"type": "string", "pattern": "a$"}, {"pattern": "^b"}]},
    {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"type": "integer", "multipleOf": 1009},
    {"type": "number", "multipleOf": 10.09},
    {"type": "object", "patternProperties": {f"^{i}_": {} for i in range(11)}},
    {"type": "object", "properties": {f"p{i}": {} for i in range(11)}, "minProperties": 1},
    {"enum": [f"value {i}" for i in range(2000)]},
]


def test_which_schemas_are_cheap() -> None:
    for pretty in (False, True):
        assert all(is_cheap(compile_schema(schema, "s", pretty=pretty).rule) for schema in CHEAP)
        assert not any(is_cheap(compile_schema(schema, "s", pretty=pretty).rule) for schema in UNKNOWN)


@pytest.mark.parametrize(
    ("rule", "cheap"),
    [
        ('{"properties": {"multipleOf": true}}', True),
        ('{"properties": {"multipleOf": false}}', True),
        ('{"const": {"multipleOf": true}}', True),
        ('{"enum": [{"multipleOf": 1e999}]}', False),
        ('{"const": 1' + 5000 * "0" + "}", False),
    ],
)
def test_any_value_is_judged(rule: str, cheap: bool) -> None:
    """Also one that is a property, or a part of a constant, and that Python does not read."""
    assert is_cheap(f"%json {rule}") is cheap


def test_cheap_ones_need_no_process(trials: GrammarTrials) -> None:
    given = constraint(*(SchemaRule("body", compile_schema(schema, "s").rule, "s") for schema in CHEAP))
    assert trials.is_quick(given) and trials.affordable(given) == given
    assert trials._process is None


def test_one_process_tries_each_schema_once(trials: GrammarTrials) -> None:
    given = constraint(rule("a"), rule("b", limit=6))
    assert not trials.is_quick(given) and trials.affordable(given) == given
    process = process_of(trials)
    trials.affordable(constraint(rule("c", limit=7)))
    assert process_of(trials) is process
    process.kill()
    process.wait()
    assert trials.is_quick(given) and trials.affordable(given) == given  # remembered
    assert process_of(trials) is process
    trials.affordable(constraint(rule("d", limit=8)))
    assert process_of(trials) is not process


def test_what_costs_too_much() -> None:
    """It is refused by name; a tool that need not be enforced takes anything, and others are as they were."""
    with closing(GrammarTrials(seconds=1e-6)) as trials:
        free = costly("arguments_0", weaker="/a/")
        other = SchemaRule("arguments_1", compile_schema({"type": "object"}, "s").rule, "tools.1")
        for _ in range(2):
            assert trials.affordable(constraint(free, other)).schemas == (replace(free, text="/a/"), other)
            assert len(trials._costs) == 1  # the other one needs no trial
        with pytest.raises(UnsupportedError, match="too much time or memory") as refused:
            trials.affordable(constraint(costly("arguments_0")))
        assert refused.value.param == "tools.0.arguments_0"


def test_one_request_tries_no_more_than_its_budget() -> None:
    many = constraint(*(costly(f"arguments_{i}", weaker="/a/", limit=i) for i in range(5)))
    with closing(GrammarTrials(seconds=1e-6)) as trials:
        for tried in (1, 2):
            assert {each.text for each in trials.affordable(many).schemas} == {"/a/"}
            assert len(trials._costs) == tried


def test_an_app_that_is_one_file_has_no_python_to_start(trials: GrammarTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert trials.affordable(constraint(rule())).schemas == (rule(),)
    assert trials._process is None


def at_call(number: int, act: Callable[[], None]) -> Callable[[], None]:
    calls = iter(range(number))

    def check() -> None:
        if next(calls, None) is None:
            act()

    return check


@posix
def test_a_request_that_nobody_wants_ends_its_trial(trials: GrammarTrials) -> None:
    def cancel() -> None:
        raise GenerationCancelledError("cancelled")

    trials.affordable(constraint(rule()))
    stopped = process_of(trials)
    os.kill(stopped.pid, signal.SIGSTOP)  # stands in for a schema that occupies the compiler
    with pytest.raises(GenerationCancelledError):
        trials.affordable(constraint(rule(limit=6)), at_call(5, cancel))
    assert stopped.poll() == -signal.SIGKILL
    assert trials.affordable(constraint(rule(limit=6)))
    os.kill(process_of(trials).pid, signal.SIGSTOP)
    with pytest.raises(EngineClosedError):
        trials.affordable(constraint(rule(limit=7)), at_call(5, trials.close))


@posix
def test_time_is_limited(trials: GrammarTrials) -> None:
    trials.affordable(constraint(rule()))
    stopped = process_of(trials)
    os.kill(stopped.pid, signal.SIGSTOP)

    def run_out() -> None:
        os.kill(stopped.pid, signal.SIGPROF)
        os.kill(stopped.pid, signal.SIGCONT)

    with pytest.raises(UnsupportedError):
        trials.affordable(constraint(rule(limit=6)), at_call(3, run_out))
    assert stopped.poll() == -signal.SIGPROF and trials._process is None
    with pytest.raises(UnsupportedError):
        trials.affordable(constraint(rule(limit=6)))
    assert trials._process is None  # the verdict is remembered


@posix
def test_a_busy_system_is_no_verdict(trials: GrammarTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    trials.affordable(constraint(rule()))
    stopped, trials._seconds = process_of(trials), 1.0
    os.kill(stopped.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(grammar_trial, "_GRACE", -0.9)
        with pytest.raises(EngineBusyError, match="busy; try again"):
            trials.affordable(constraint(rule(limit=6)))
    assert stopped.poll() == -signal.SIGKILL
    trials._seconds = 1000
    assert trials.affordable(constraint(rule(limit=6))).schemas == (rule(limit=6),)
    killed = process_of(trials)
    os.kill(killed.pid, signal.SIGSTOP)
    with pytest.raises(EngineBusyError):
        trials.affordable(constraint(rule(limit=7)), at_call(3, killed.kill))


@posix
def test_the_process_ends_beyond_its_time() -> None:
    code = "from pocketvlm.system.limits import limit_own_time\nlimit_own_time(0.01)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGPROF


@pytest.mark.parametrize(("number", "untried"), [(errno.ENOENT, True), (errno.EPERM, True), (errno.EMFILE, False)])
def test_a_process_that_cannot_be_started(
    trials: GrammarTrials, monkeypatch: pytest.MonkeyPatch, number: int, untried: bool
) -> None:
    """Where that is for good, schemas are compiled untried."""

    def refuse(*_: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(grammar_trial, "start", refuse)
    with nullcontext() if untried else pytest.raises(OSError):
        assert trials.affordable(constraint(rule())).schemas == (rule(),)


def test_a_process_without_a_thread_to_read_it(trials: GrammarTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    def keep(*arguments: str) -> subprocess.Popen[str]:
        started.append(start(*arguments))
        return started[0]

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(grammar_trial, "start", keep)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        trials.affordable(constraint(rule()))
    assert started[0].returncode is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_memory_is_limited() -> None:
    with closing(GrammarTrials(memory=1 << 20)) as trials, pytest.raises(EngineError, match="does not start"):
        trials.affordable(constraint(rule()))


def test_the_process_ends_with_its_owner() -> None:
    process = start("pocketvlm.native.grammar_compiler", str(1 << 30))
    with process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.communicate(timeout=240)
    assert process.returncode == 0
