"""When a process counts as stuck: by looks at it, never by the clock."""

from __future__ import annotations

import math

import pytest

from pocketvlm.engine.process.watchdog import Watchdog


def test_silence() -> None:
    watch = Watchdog(600.0)
    assert watch.interval == 6
    for _ in range(3):  # an answer now and then is enough
        assert [watch.look() for _ in range(10)] == [""] * 10
        watch.hear((None, None))
    assert [watch.look() for _ in range(11)] == [""] * 10 + ["because it did not answer for 60 s"]


@pytest.mark.parametrize("place", [0, 1])
def test_work_that_does_not_end(place: int) -> None:
    watch = Watchdog(120.0)
    seen = []
    for look in range(30):
        watch.hear((7, None) if place == 0 else (look, 7))
        seen.append(watch.look())
    assert seen.index("because one step of its work took more than 120 s") == 20  # looks, 6 s between two
    assert not any(seen[:20])


def test_work_that_goes_on_and_none_at_all() -> None:
    watch = Watchdog(0.5)
    for look in range(100):
        watch.hear((look, None) if look % 2 else (None, look))
        assert watch.look() == ""
    for _ in range(100):
        watch.hear((None, None))
        assert watch.look() == ""


def test_no_limit() -> None:
    watch = Watchdog(math.inf)
    for _ in range(1000):
        watch.hear((1, 1))
        assert watch.look() == ""
