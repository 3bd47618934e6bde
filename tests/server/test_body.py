"""A request's body, alone."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from pocketvlm.server.body import read_object


@pytest.mark.parametrize(("size", "beside"), [(10, False), (1 << 17, True)])
def test_a_large_body_does_not_hold_the_loop(size: int, beside: bool) -> None:
    data = json.dumps({"text": "a" * size}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data}

    def make(body: dict[str, Any]) -> tuple[int, bool]:
        return len(body["text"]), threading.current_thread() is not threading.main_thread()

    reading = read_object({"headers": []}, receive, make, max_body=1 << 20, timeout=10)
    assert asyncio.run(reading) == (size, beside)
