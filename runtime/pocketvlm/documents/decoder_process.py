"""Decode one file of unknown origin in a process of its own, which is ended where it takes too long or too much.

PDF and video formats are large, and their decoders have had faults that a file could use. An abort or a hang there
ends the process, and the next page starts a new one.
"""

from __future__ import annotations

import json
import subprocess
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.errors import ImageTooLargeError, PasswordError, UnsupportedError
from pocketvlm.pictures.sources import Source
from pocketvlm.system.limits import TIME_IS_OVER
from pocketvlm.system.subprocess import can_start, start_binary

_GRACE = 10.0  # seconds by the clock: to start, and where others use the processor
_SHARE = 3  # seconds by the clock for each second of a processor
_LONGEST_LINE = 1 << 16


class DecoderStoppedError(Exception):
    """The process ended before it had answered; the message says why."""


class DecoderProcess:
    """Runs `module` for the file `content`, which its `open_file` gets with the `options`. Any thread may call."""

    def __init__(self, module: str, content: Path | bytes, options: Mapping[str, Any], limits: DocumentLimits) -> None:
        self._module = module
        self._content = content
        self._options = options
        self._limits = limits
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._kill: weakref.finalize[..., Any] | None = None
        self._late = False
        self._closed = False

    def open(self) -> dict[str, Any]:
        """Start the process, unless it runs, and return what it says of the file. Raises DecoderStoppedError."""
        with self._lock:
            return self._start() if self._process is None else {}

    def ask(self, request: Mapping[str, Any], most: int = 0) -> tuple[dict[str, Any], bytes]:
        """Return the answer, with at most `most` bytes of data. Raises DecoderStoppedError.

        An answer with `error` is one of a decoder that goes on.
        """
        with self._lock:
            if "error" in (facts := self.open()):
                return facts, b""
            return self._exchange([json.dumps(request).encode() + b"\n"], most)

    def rest(self) -> None:
        """End the process until the next request."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """End the process, also while another thread waits for it."""
        self._closed = True
        self._end()

    def _start(self) -> dict[str, Any]:
        if self._closed:
            raise DecoderStoppedError("the document is closed")
        if not can_start():
            raise UnsupportedError("is decoded in a process of its own, which cannot be started from this app")
        place = {"size": len(self._content)} if isinstance(self._content, bytes) else {"path": str(self._content)}
        opening = {**self._options, **place, "seconds": self._limits.seconds, "memory": self._limits.memory}
        process = self._process = start_binary(self._module)
        self._kill = weakref.finalize(self, _end_process, process)
        self._late = False
        pieces = [json.dumps(opening).encode() + b"\n"]
        if isinstance(self._content, bytes):
            pieces.append(self._content)
        facts, _ = self._exchange(pieces, 0)
        if "error" in facts:
            self._end()
        return facts

    def _exchange(self, pieces: list[bytes], most: int) -> tuple[dict[str, Any], bytes]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = threading.Timer(_SHARE * self._limits.seconds + _GRACE, self._stop)
        timer.daemon = True
        timer.start()
        try:
            for piece in pieces:
                process.stdin.write(piece)
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline(_LONGEST_LINE))
            size = answer.pop("bytes")
            if not 0 <= size <= most:
                raise ValueError("the process sends too much")
            data = process.stdout.read(size)
            if len(data) < size:
                raise ValueError("the process sends too little")
        except (OSError, ValueError):
            reason = self._reason(process)
            self._end()
            raise DecoderStoppedError(reason) from None
        except BaseException:  # Ctrl-C too: the rest of the answer would be taken for the next one
            self._end()
            raise
        finally:
            timer.cancel()
        return answer, data

    def _stop(self) -> None:
        self._late = True
        self._end()

    def _end(self) -> None:
        if self._kill is not None:
            self._kill()
        self._process = None

    def _reason(self, process: subprocess.Popen[bytes]) -> str:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        if self._closed:
            return "the document was closed"
        if self._late or process.returncode == TIME_IS_OVER:
            return f"it takes more than {self._limits.seconds:g} s to decode"
        if process.returncode == 0:
            return "its decoder ended"
        return f"it is damaged, or takes more than {self._limits.memory >> 20:,} MB to decode"


def check_answer(answer: Mapping[str, Any], source: Source, *, has_password: bool = False) -> None:
    """Raise the error of an answer, if it is one."""
    kind = answer.get("error")
    if kind == "password":
        reason = "the password is wrong" if has_password else "is encrypted; give its password"
        raise source.error(reason, PasswordError)
    if kind == "memory":
        raise source.error("takes too much memory to decode")
    if kind == "too large":
        raise source.error(str(answer.get("message")), ImageTooLargeError)
    if kind is not None:
        raise source.error(str(answer.get("message")))


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError, ValueError):
            if pipe is not None:
                pipe.close()
