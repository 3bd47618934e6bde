"""How far a batch is: rate, time left and total, in terminals and in logs."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from pocketvlm.cli.batch_progress import BatchProgress, duration, rate


@pytest.mark.parametrize(
    ("per_second", "expected"),
    [
        (2000, "2,000.0 a second"),
        (1, "1.0 a second"),
        (0.5, "30.0 a minute"),
        (1 / 90, "40.0 an hour"),
        (0, "0.0 an hour"),
    ],
)
def test_a_rate_is_a_number_to_picture(per_second: float, expected: str) -> None:
    assert rate(per_second) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00"), (360_000, "100:00:00")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "_environ": {"TERM": "dumb"}}])
def test_a_log_gets_a_line_a_minute(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = io.StringIO()
    with BatchProgress(200, 80, Console(file=log, width=200, **options)) as progress:  # type: ignore[arg-type]
        now += 30  # loading does not count
        progress.start()
        for _ in range(60):
            now += 2
            progress.advance()
        assert progress.total() == "60 asked in 2:00, 30.0 a minute"
    assert log.getvalue().splitlines() == [
        "110 of 200 asked, 30.0 a minute, 3:00 left",
        "140 of 200 asked, 30.0 a minute, 2:00 left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    with BatchProgress(4, 1, Console(file=screen, width=80, force_terminal=True, _environ={})) as progress:
        progress.start()
        progress.advance()
    assert "2 of 4 asked" in screen.getvalue() and "left" in screen.getvalue()
