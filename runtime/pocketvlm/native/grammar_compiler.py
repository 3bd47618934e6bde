"""Compile grammars with llguidance within its limits.

As a program, it compiles each grammar that comes on standard input, as a line of JSON with the processor seconds that
it may take, and answers with the seconds that it took. Beyond them the process ends by a signal (not on Windows). It
ends when its input does, even while it compiles.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import llguidance

from pocketvlm.errors import EngineError
from pocketvlm.system.limits import limit_own_memory, limit_own_time

# Work for one token in llguidance's units, about 10 ms, for which all other streams wait.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 150_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
T = TypeVar("T")


def compile_grammar(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """Return the state of an answer. Raises EngineError with the reason where the compiler refuses the grammar."""
    limits = llguidance.LLParserLimits(**_LIMITS)
    matcher = catch_panic(lambda: llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits))
    if catch_panic(matcher.is_error):
        raise EngineError(reason(catch_panic(matcher.get_error)))
    return matcher


def reason(message: str) -> str:
    """Return the first lines of an error message of llguidance, without the place in its source files."""
    message = re.split(r"\n\s*\d+ \| |<non-verbose/>|<state>", message)[0]
    message = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: |^Parser Error: ", "", message)
    message = re.sub(r"(?s)^(regex parse error: ).*error: ", r"\1", " ".join(message.split()))
    return message[:300] or "the grammar failed"


def catch_panic(call: Callable[[], T]) -> T:
    """Return the result of `call`; raise EngineError for an exception or a panic in it."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of llguidance derives from BaseException
        raise EngineError(reason(str(error))) from None


def main() -> None:
    limit_own_memory(int(sys.argv[1]))
    tokenizer = llguidance.LLTokenizer("byte")  # what a schema costs to compile does not depend on the vocabulary
    grammars: SimpleQueue[tuple[str, float]] = SimpleQueue()
    threading.Thread(target=_read, args=(grammars,), daemon=True).start()
    print("ready", flush=True)
    while True:
        grammar, seconds = grammars.get()
        limit_own_time(seconds)
        began = time.process_time()
        with suppress(EngineError):  # a refusal is found again, and reported, where the grammar is used
            compile_grammar(tokenizer, grammar)
        took = time.process_time() - began
        limit_own_time(0)  # the answer is whole
        print(took, flush=True)


def _read(grammars: SimpleQueue[tuple[str, float]]) -> None:
    for line in sys.stdin:
        grammar, seconds = json.loads(line)
        grammars.put((grammar, seconds))
    os._exit(0)  # the parent has gone, or wants that


if __name__ == "__main__":
    main()
