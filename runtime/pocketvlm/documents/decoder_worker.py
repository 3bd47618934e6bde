"""The other side of `decoder_process`: decodes one file within limits, and answers requests for its pages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pocketvlm.system.limits import limit_own_memory, limit_own_time

Answer = tuple[Mapping[str, Any], list[memoryview]]  # JSON, and the bytes that follow it
Decoder = Callable[[Mapping[str, Any]], Answer]


class DecodingError(Exception):
    """The file or page cannot be decoded. `kind` is for programs, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def serve(open_file: Callable[[Path | bytes, Mapping[str, Any]], tuple[Mapping[str, Any], Decoder]]) -> None:
    """Answer on standard output what standard input asks, a line of JSON each, until it closes.

    The first line says where the file is, and the limits. The answer to it is what `open_file` returns.
    """
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as empty:
        os.dup2(empty.fileno(), 1)  # a library may print
    opening = json.loads(requests.readline())
    limit_own_memory(opening["memory"])
    content = Path(opening["path"]) if "path" in opening else requests.read(opening["size"])
    decoder: Decoder | None = None

    def answer(request: Mapping[str, Any]) -> Answer:
        nonlocal decoder
        if decoder is None:
            facts, decoder = open_file(content, opening)
            return facts, []
        return decoder(request)

    request = opening
    while True:
        limit_own_time(opening["seconds"])
        try:
            fields, data = answer(request)
        except DecodingError as error:
            fields, data = {"error": error.kind, "message": str(error)}, []
        except MemoryError:
            fields, data = {"error": "memory", "message": ""}, []
        limit_own_time(0)
        line = json.dumps({**fields, "bytes": sum(len(piece) for piece in data)})
        answers.write(line.encode() + b"\n")
        for piece in data:
            answers.write(piece)
        answers.flush()
        if decoder is None:
            return
        line_of_request = requests.readline()
        if not line_of_request:
            return
        request = json.loads(line_of_request)
