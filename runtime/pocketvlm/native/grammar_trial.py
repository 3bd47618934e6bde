"""Try what a schema costs to compile, in a process that can be killed, before it is compiled where it is used."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

from pocketvlm.errors import EngineBusyError, EngineClosedError, EngineError, UnsupportedError
from pocketvlm.native.grammar import Constraint, SchemaRule
from pocketvlm.native.schema_cost import is_cheap
from pocketvlm.system.limits import shortage
from pocketvlm.system.subprocess import can_start, start

logger = logging.getLogger(__name__)
SECONDS = 1.0  # of a processor, to compile all schemas of a request; most take a thousandth
MEMORY = 1 << 30  # bytes of address space, a part of which is Python's
_QUICK = 0.1  # seconds
_GRACE = 2.0  # seconds by the clock beyond those of a processor, which others use, too
_KILLED = (-9, -15)  # by another program or for want of memory, which says little of the schema
_START_SECONDS = 60.0  # until the process is ready
_POLL = 0.05  # seconds between looks at whether the request is still wanted
_REMEMBERED = 1000  # schemas
_COMPILER = "pocketvlm.native.grammar_compiler"
Check = Callable[[], None]


class GrammarTrials:
    """Compiles schemas in a process of its own, one at a time, and remembers what they cost. For any thread.

    The process starts when it is first needed, and again after it was killed. Schemas stay untried where Python cannot
    start a process: in an app that is one file, or without the right to. `seconds` limits the processor time to
    compile all schemas of one request, `memory` the bytes of the process's address space.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._seconds, self._memory = seconds, memory
        self._costs: OrderedDict[bytes, float] = OrderedDict()  # seconds, or infinity, by a hash of the schema
        self._turn = threading.Lock()  # to use the process
        self._process: _Process | None = None
        self._closed = False

    def is_quick(self, constraint: Constraint) -> bool:
        """Whether the schemas are known to compile quickly, without a trial."""
        costs = [self._known_cost(rule) for rule in constraint.schemas]
        return sum(math.inf if cost is None else cost for cost in costs) <= _QUICK

    def affordable(self, constraint: Constraint, check: Check = lambda: None) -> Constraint:
        """Return the constraint, with the weaker text of each schema that costs too much.

        Raises UnsupportedError for such a schema without one, EngineBusyError where other programs leave too little of
        a processor to know, and what `check` raises. `check` is called several times a second and ends the trial of a
        request that was cancelled.
        """
        total = tried = 0.0
        rules: list[SchemaRule] = []
        for rule in constraint.schemas:
            cost = self._known_cost(rule)
            if cost is None and tried < self._seconds:
                cost = self._cost(rule, check)
                tried += cost
            if cost is None:  # a later request tries it
                cost = math.inf
            if total + cost <= self._seconds:
                total += cost
            elif rule.weaker is None:
                raise UnsupportedError(
                    "cannot be enforced: it takes too much time or memory to compile; use a smaller or simpler schema",
                    rule.param,
                )
            else:
                logger.warning("%s: its schema is not enforced", ".".join(rule.param.split(".")[:2]))
                rule = replace(rule, text=rule.weaker)
            rules.append(rule)
        return replace(constraint, schemas=tuple(rules))

    def close(self) -> None:
        """End the process. Running trials raise EngineClosedError."""
        self._closed = True
        if (process := self._process) is not None:  # another thread may end it, too
            process.kill()

    def _known_cost(self, rule: SchemaRule) -> float | None:
        return 0.0 if is_cheap(rule.text) else self._costs.get(_key(rule))

    def _cost(self, rule: SchemaRule, check: Check) -> float:
        """Return the seconds that a schema takes to compile; infinity where it takes too long, or too much memory."""
        key = _key(rule)
        while not self._turn.acquire(timeout=_POLL):
            self._check(check)
        try:
            if key not in self._costs:
                self._costs[key] = self._try(rule.grammar, check)
                if len(self._costs) > _REMEMBERED:
                    self._costs.popitem(last=False)
            self._costs.move_to_end(key)
            return self._costs[key]
        finally:
            self._turn.release()

    def _try(self, grammar: str, check: Check) -> float:
        if not can_start():
            return 0.0
        try:
            process = self._started(check)
            process.send(grammar, self._seconds)
            answer = self._wait(process, self._seconds + _GRACE, check)
        except OSError as error:
            if shortage(error):
                raise
            logger.warning("a schema is compiled untried, because no process can be started: %s", error)
            return 0.0
        except BaseException:  # Ctrl-C too: the process may work on for long
            self._end_process()
            raise
        if answer:
            return float(answer)
        self._end_process()
        if answer is None and not process.limits_time:  # the clock decides
            return math.inf
        if answer is None or process.code in _KILLED:
            raise EngineBusyError("a schema could not be tried, because the system is too busy; try again")
        return math.inf

    def _started(self, check: Check) -> _Process:
        if self._process is None or not self._process.runs:
            self._end_process()
            self._process = _Process(self._memory)
            if not self._wait(self._process, _START_SECONDS, check):
                raise EngineError("the process that compiles schemas does not start")
        return self._process

    def _wait(self, process: _Process, seconds: float, check: Check) -> str | None:
        """Return the next line of the process; "" where it has ended, None where it has not answered in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check(check)
            with suppress(Empty):
                line = process.lines.get(timeout=_POLL)
                self._check(check)  # `close` may have ended the process
                return line
        return None

    def _check(self, check: Check) -> None:
        check()
        if self._closed:
            raise EngineClosedError("the model is closed")

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


def _key(rule: SchemaRule) -> bytes:
    return hashlib.sha256(rule.text.encode()).digest()


class _Process:
    """`lines` receives the lines that the process writes, and "" at its end."""

    limits_time = hasattr(signal, "setitimer")  # not on Windows

    def __init__(self, memory: int) -> None:
        self._popen = start(_COMPILER, str(memory))
        self.lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="pocketvlm-grammar-trial", daemon=True)
        try:
            self._reader.start()
        except RuntimeError:  # the system gives no thread
            self.kill()
            assert self._popen.stdout is not None
            self._popen.stdout.close()
            raise

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    @property
    def code(self) -> int | None:
        """How the process ended: an exit status, or minus the number of a signal."""
        return self._popen.returncode

    def send(self, grammar: str, seconds: float) -> None:
        assert self._popen.stdin is not None
        with suppress(OSError, ValueError):  # it has ended or is closed, as `lines` says, too
            self._popen.stdin.write(json.dumps([grammar, seconds]) + "\n")
            self._popen.stdin.flush()

    def kill(self) -> None:
        assert self._popen.stdin is not None
        self._popen.kill()
        self._popen.wait()
        with suppress(OSError):  # a part of a grammar may be unsent
            self._popen.stdin.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stdout:
            for line in stdout:
                self.lines.put(line)
        self.lines.put("")
