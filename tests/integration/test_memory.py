"""A picture is gone when its request is, without waiting for the garbage collector, nor for the next request."""

from __future__ import annotations

import gc
import os
import platform
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from integration.asking import asked, disc, settle
from integration.test_child import pid_of, start
from pocketvlm.documents import sources
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import EngineOptions, Finished, Generation, PromptImage
from pocketvlm.engine.process import worker
from pocketvlm.engine.process.protocol import (
    REQUESTS,
    Cancel,
    Close,
    EventReply,
    Failed,
    Generate,
    Ready,
    Reply,
    Request,
    Start,
)
from pocketvlm.files.locate import locate
from pocketvlm.messages import ImagePart
from pocketvlm.native.sampler import Sampling
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.templates.prompt import TextSpan
from waiting import wait_until


def glibc() -> bool:
    return platform.libc_ver()[0] == "glibc" and "RssAnon" in Path("/proc/self/status").read_text()


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("parallel", [1, 2])
def test_the_engines_process_keeps_none(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch, parallel: int) -> None:
    """Requests that end, are cancelled while they are encoded, and fail."""
    seen: list[weakref.ref[Any]] = []

    def noted(self: InProcessEngine, generation: Generation, *rest: Any, **options: Any) -> Any:
        seen.extend(weakref.ref(piece.picture) for piece in generation.prompt if isinstance(piece, PromptImage))
        return real(self, generation, *rest, **options)

    real = InProcessEngine.submit
    monkeypatch.setattr(InProcessEngine, "submit", noted)
    there, here = os.pipe()
    outbox: SimpleQueue[Reply] = SimpleQueue()
    with os.fdopen(there, "rb") as requests, os.fdopen(here, "wb") as asking:
        running = threading.Thread(target=worker.serve, args=(requests, outbox))
        running.start()

        def send(request: Request) -> None:
            asking.writelines(REQUESTS.pack(request))
            asking.flush()

        def ask(number: int, words: str = " What is this?") -> None:
            pictures = (ImagePart(type="image", image=disc("red", 4 * number + n)) for n in range(4))
            images = [PromptImage(read_picture(picture, ""), "high", None, "") for picture in pictures]
            prompt = (TextSpan("User:", special=False), *images, TextSpan(words, special=False))
            send(Generate(number, Generation(prompt, Sampling(), max_tokens=2)))

        def ends(number: int) -> type:
            while True:
                match outbox.get(timeout=60):
                    case EventReply(id, Finished()) if id == number:
                        return Finished
                    case Failed(id) if id == number:
                        return Failed

        found = locate(iota_bundle, model=None, mmproj=None)
        options = EngineOptions(parallel=parallel, context_size=512, threads=1)
        send(Start(found.model, found.mmproj, found.onnx, name="", fingerprint="", options=options))
        assert isinstance(outbox.get(timeout=60), Ready)
        for number in range(3):
            ask(number)
            assert ends(number) is Finished
        ask(3, " What" * 1000)
        assert ends(3) is Failed
        ask(4)
        send(Cancel(4))
        wait_until(lambda: len(seen) == 20)
        wait_until(lambda: not any(one() for one in seen))
        send(Close())
        running.join(60)


@pytest.mark.usefixtures("uncollected")
def test_the_process_that_asks_keeps_none(iota_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Any]] = []

    def noted(*given: Any, **options: Any) -> Picture:
        picture = read_picture(*given, **options)
        seen.append(weakref.ref(picture.pixels))
        return picture

    monkeypatch.setattr(sources, "read_picture", noted)
    with start(iota_bundle) as vlm:
        for number in range(3):
            stream = vlm.stream(asked("What is this?", disc("blue", number)))
            next(stream)
            stream.close()
            del stream
        for number in range(3):
            vlm.chat(asked("What is this?", disc("red", number)), max_tokens=2)
        assert len(seen) == 6
        wait_until(lambda: not any(one() is not None for one in seen))


@pytest.mark.skipif(not glibc(), reason="glibc's heap, seen in Linux's /proc")
@pytest.mark.slow
def test_what_a_picture_took_goes_back_to_the_system(iota_bundle: Path) -> None:
    with start(iota_bundle) as vlm:

        def ask(number: int, edge: int) -> int:
            picture = disc("red", number).resize((edge + 100 * number, edge))
            vlm.chat(asked("What is this?", picture), max_tokens=2)
            settle(vlm)
            status = Path(f"/proc/{pid_of(vlm)}/status").read_text()
            return int(status.partition("RssAnon:")[2].split()[0])

        before = [ask(number, 96) for number in range(3)][-1]
        assert [ask(number, 1500) for number in range(6)][-1] < before + 3 * 1024  # KiB; one has 7 MB and more
