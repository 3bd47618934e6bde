"""Wait until a condition holds."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 60.0  # seconds: a busy machine does not reach them, and only a test that fails waits for so long


def wait_until(done: Callable[[], object]) -> None:
    """Return once `done()` is true."""
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
