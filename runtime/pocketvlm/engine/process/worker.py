"""The process of a `SupervisedEngine`: frames on standard input are requests, frames on standard output are events.

It ends with its parent, however that ends: the pipe closes, and to be sure it looks who its parent is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, Any

from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import Event, Finished, Generation, Snapshot
from pocketvlm.engine.process import protocol
from pocketvlm.engine.scheduling.request_state import RequestState
from pocketvlm.errors import PocketVLMError
from pocketvlm.system import offline
from pocketvlm.system.allocator import freeze_garbage_collector, return_large_blocks
from pocketvlm.templates.prompt import TextSpan

_LOOK = 1.0  # seconds between two looks at the parent
_AT_ONCE = 64  # frames in one write
_LONG = 100_000  # characters


def main() -> None:
    parent = os.getppid()
    offline.enforce_if_requested()
    return_large_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent
    if sys.platform != "win32":
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else `stty tostop` would stop who writes a message there
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints must not print into the frames
    outbox: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
    threading.Thread(target=_write, args=(answers, outbox, parent), daemon=True).start()
    serve(requests, outbox)
    os._exit(0)  # at once: the parent has gone or has said so, and nothing here outlives it


def serve(requests: IO[bytes], outbox: SimpleQueue[Mapping[str, Any]]) -> None:
    """Until the parent goes or says `close`."""
    first = protocol.read(requests)
    if first is None:
        return
    try:
        engine = InProcessEngine(**protocol.decode_engine(first[0]))
    except PocketVLMError as error:
        outbox.put({"refused": protocol.encode_error(error)})
        protocol.read(requests)  # the parent has read it and closes
        return
    freeze_garbage_collector()
    outbox.put({"ready": protocol.encode_info(engine.info)})
    jobs: dict[int, RequestState | None] = {}  # None: not submitted yet
    changing = threading.Lock()

    def sink(number: int, event: Event | BaseException) -> None:
        outbox.put({**protocol.encode_event(event), "id": number})
        if isinstance(event, Finished | BaseException):
            with changing:
                jobs.pop(number, None)

    def begin(number: int, request: Generation) -> None:
        try:
            job = engine.submit(request, partial(sink, number))
        except Exception as error:  # whoever asked is told
            sink(number, error)
            return
        with changing:
            wanted = number in jobs
            if wanted:
                jobs[number] = job
        if not wanted:  # over already, or cancelled before it was submitted
            engine.withdraw(job)

    def adopt(snapshot: Snapshot) -> Snapshot:
        engine.adopt(snapshot)
        return Snapshot()

    def clear() -> Snapshot:
        engine.clear_picture_cache()
        return Snapshot()

    def reply(number: int, work: Callable[[], Snapshot]) -> None:
        try:
            told, blobs = protocol.encode_snapshot(work())
            outbox.put({"snapshot": told, "id": number, "blobs": blobs})
        except Exception as error:  # whoever asked is told
            outbox.put({**protocol.encode_event(error), "id": number})

    slowly = ThreadPoolExecutor(2, "pocketvlm-begin")  # a grammar, a book, a cache may take seconds; others must get on

    def take(message: dict[str, Any], blob: memoryview) -> bool:
        kind: str = message.pop("kind")
        if kind == "generate":
            number = message.pop("id")
            jobs[number] = None
            request = protocol.decode_generation(message, blob)
            letters = sum(len(piece.text) for piece in request.prompt if isinstance(piece, TextSpan))
            if request.constraint is None and letters < _LONG:
                begin(number, request)
            else:
                slowly.submit(begin, number, request)
        elif kind == "cancel":
            with changing:
                unwanted = jobs.pop(message["id"], None)
            if unwanted is not None:
                engine.withdraw(unwanted)
        elif kind == "snapshot":
            number = message.pop("id")
            slowly.submit(reply, number, partial(engine.snapshot, protocol.decode_generation(message, blob).prompt))
        elif kind == "adopt":
            slowly.submit(reply, message["id"], partial(adopt, protocol.decode_snapshot(message["snapshot"], blob)))
        elif kind == "clear_picture_cache":
            slowly.submit(reply, message["id"], clear)
        elif kind == "statistics":
            outbox.put({"statistics": asdict(engine.statistics()), "id": message["id"]})
        elif kind == "look":
            outbox.put({"doing": engine.progress})
        return bool(kind != "close")

    while (frame := protocol.read(requests)) is not None and take(*frame):
        del frame  # pictures among it, until the next request comes


def _write(stream: IO[bytes], outbox: SimpleQueue[Mapping[str, Any]], parent: int) -> None:
    """To the end of the process: that of the parent, or of what can be written."""
    try:
        _write_all(stream, outbox, parent)
    except OSError:
        pass
    except BaseException:  # whatever it is, the process is of no use without it
        traceback.print_exc()
    os._exit(1)


def _write_all(stream: IO[bytes], outbox: SimpleQueue[Mapping[str, Any]], parent: int) -> None:
    while True:
        try:
            frames = [outbox.get(timeout=_LOOK)]
        except Empty:
            if os.getppid() != parent:
                return
            continue
        while not outbox.empty() and len(frames) < _AT_ONCE:
            frames.append(outbox.get())
        data = memoryview(b"".join(part for frame in frames for part in _packed(**frame)))
        while data:
            data = data[stream.write(data) :]


def _packed(*, blobs: Sequence[memoryview] = (), **message: Any) -> list[bytes | memoryview]:
    return protocol.pack(message, blobs)
