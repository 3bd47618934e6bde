"""Places and the queue, alone: none is lost, however clients come and go."""

from __future__ import annotations

import asyncio
import random

import pytest

from pocketvlm.errors import QueueFullError
from pocketvlm.server.admission import Admission


def test_first_come_first_served_and_bounded() -> None:
    async def check() -> None:
        admission = Admission(slots=1, queue=2)
        await admission.enter()
        order: list[int] = []

        async def client(number: int) -> None:
            await admission.enter()
            order.append(number)
            admission.leave(0.1)

        waiting = [asyncio.create_task(client(number)) for number in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as full:
            await admission.enter()
        assert full.value.retry_after >= 1
        assert (admission.running, admission.waiting) == (1, 2)
        admission.leave(0.1)
        await asyncio.gather(*waiting)
        assert order == [0, 1]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(check())


def test_no_place_is_lost() -> None:
    """A client can leave the line in the very moment in which its turn comes."""
    dice = random.Random(0)

    async def check() -> None:
        admission = Admission(slots=3, queue=1000)
        most = 0

        async def client() -> None:
            nonlocal most
            await admission.enter()
            most = max(most, admission.running)
            try:
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                admission.leave(0.0)

        tasks: list[asyncio.Task[None]] = []
        for _ in range(2000):
            tasks.append(asyncio.create_task(client()))
            if dice.random() < 0.6:
                dice.choice(tasks).cancel()
            if dice.random() < 0.5:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 3
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(check())
