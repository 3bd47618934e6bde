"""How a case ends, and what makes two endings the same."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ANSWERED, REFUSED = "answered", "refused"
TRACEBACK, MESSAGE, ABORT, HANG, MEMORY = "traceback", "message", "abort", "hang", "memory"
CLEAN = (ANSWERED, REFUSED)
OUTCOMES = (ANSWERED, REFUSED, TRACEBACK, MESSAGE, ABORT, HANG, MEMORY)

_OURS = ("pocketvlm", "pocketvlm_converters", "pocketvlm_models")
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')  # as faulthandler writes it
_REASONS = (r"GGML_ASSERT\(.*", r"terminate called .*", r"what\(\).*", r"panicked at .*", r"Fatal Python error: .*")
_MOST = 2500  # characters of a message


@dataclass(frozen=True)
class Verdict:
    """`where` is equal for cases that are likely to have one cause. `seconds` of wall time, `peak` memory in bytes."""

    outcome: str
    where: str = ""
    detail: str = ""
    seconds: float = 0.0
    peak: int = 0

    @property
    def clean(self) -> bool:
        return self.outcome in CLEAN

    @property
    def key(self) -> tuple[str, str]:
        return self.outcome, self.where


class NotClean(Exception):  # noqa: N818 - it is an outcome, not an error
    """Raised by a kind for an outcome that shows in no exception, such as a wrong exit code."""

    def __init__(self, outcome: str, where: str, detail: str = "") -> None:
        super().__init__(where)
        self.verdict = Verdict(outcome, where, detail or where)


def not_clean(outcome: str, where: str, detail: str = "") -> NoReturn:
    raise NotClean(outcome, where, detail)


def refusal(text: str) -> Verdict:
    """Judge the text of a typed error: it must be one line that a terminal can show."""
    shown = text.strip()
    faults = [
        ("empty", not shown),
        ("several lines", "\n" in shown or "\r" in shown),
        ("control characters", any((ord(c) < 32 and c not in "\n\r\t") or 127 <= ord(c) < 160 for c in shown)),
        ("half surrogates", any(0xD800 <= ord(c) < 0xE000 for c in shown)),
        (f"over {_MOST} characters", len(shown) > _MOST),
    ]
    for fault, found in faults:
        if found:
            return Verdict(MESSAGE, f"{fault}: {_normal(shown)[:60]}", shown[:4000])
    return Verdict(REFUSED, detail=shown)


def of_exception(error: BaseException) -> Verdict:
    """Name an unexpected exception by its type and the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = next((f for f in reversed(frames) if _is_ours(f.filename)), frames[-1] if frames else None)
    at = f"{_short(ours.filename)}:{ours.lineno} {ours.name}" if ours else "?"
    text = "".join(traceback.format_exception(error))
    return Verdict(TRACEBACK, f"{type(error).__name__} in {at}", text[-6000:])


def of_log(outcome: str, what: str, log: str) -> Verdict:
    """Name an end by a signal, or an interrupted case, by what native code and faulthandler wrote about it."""
    reason = " ".join(match[0] for match in (re.search(pattern, log) for pattern in _REASONS) if match)
    # faulthandler writes a paragraph for each thread. In a hang the main thread waits, so where others are says more.
    threads = re.split(r"\n(?=(?:Current t|T)hread 0x)", log)
    current = next((thread for thread in threads if thread.startswith("Current thread")), log)
    frames = _FRAME.findall(current)
    ours = next((frame for frame in frames if _is_ours(frame[0])), frames[0] if frames else None)
    at = f"{_short(ours[0])}:{ours[1]} {ours[2]}" if ours else ""
    where = " ".join(filter(None, [what, _normal(reason)[:160], f"in {at}" if at else ""]))
    return Verdict(outcome, where, log[-6000:])


def _is_ours(path: str) -> bool:
    return any(part in _OURS for part in Path(path).parts) and "site-packages" not in path


def _short(path: str) -> str:
    parts = Path(path).parts
    start = next((n for n, part in enumerate(parts) if part in _OURS), len(parts) - 2)
    return "/".join(parts[max(0, start) :])


def _normal(text: str) -> str:
    """Replace what differs between runs: numbers and addresses."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", text)
