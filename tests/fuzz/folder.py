"""What is kept between runs: how far each kind has come, and one small case of each outcome that is not clean."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz.cases import Case
from fuzz.outcomes import Verdict


@dataclass
class Progress:
    """Of one kind with one seed: the next case, and what came of those before. Times in seconds, memory in bytes."""

    next: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    slowest_case: int = -1

    def add(self, case: Case, verdict: Verdict) -> None:
        self.counts[verdict.outcome] += 1
        self.next = max(self.next, case.number + 1)
        self.largest = max(self.largest, verdict.peak)
        if verdict.seconds > self.slowest:
            self.slowest, self.slowest_case = verdict.seconds, case.number


@dataclass(frozen=True)
class Found:
    """A kept case, one of all that ended like it."""

    case: Case
    verdict: Verdict
    path: Path


class Folder:
    """`state.json`, and below `found` a file for each outcome."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"
        self._found = path / "found"
        self._state = path / "state.json"
        for folder in (self.work, self._found):
            folder.mkdir(parents=True, exist_ok=True)

    def progress(self, seed: int) -> dict[str, Progress]:
        """Return the progress of kinds by name."""
        return {
            name.removeprefix(f"{seed} "): Progress(**{**values, "counts": Counter(values["counts"])})
            for name, values in self._read().items()
            if name.startswith(f"{seed} ")
        }

    def save_progress(self, seed: int, progress: dict[str, Progress]) -> None:
        state = self._read() | {f"{seed} {kind}": vars(value) for kind, value in progress.items()}
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps(state, indent=1))
        new.replace(self._state)

    def kept(self) -> Iterator[Found]:
        """Yield the kept cases with the verdicts that they were kept for."""
        for path in sorted(self._found.glob("*.json")):
            text = path.read_text()
            yield Found(Case.load(text), Verdict(**json.loads(text)["verdict"]), path)

    def place(self, case: Case, verdict: Verdict) -> Path:
        """Return the file of a case: one for all that end alike."""
        where = hashlib.sha256(f"{case.kind} {verdict.where}".encode()).hexdigest()[:8]
        return self._found / f"{case.kind}-{verdict.outcome}-{where}.json"

    def keep(self, case: Case, verdict: Verdict, shown: Sequence[str]) -> None:
        """Write a case, and what people read about it."""
        self.place(case, verdict).write_text(case.dump(shown=shown, verdict=asdict(verdict)))

    def _read(self) -> dict[str, Any]:
        known: dict[str, Any] = json.loads(self._state.read_text()) if self._state.exists() else {}
        return known
