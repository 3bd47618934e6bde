"""A program in a terminal, as a person has it: keys are typed, and the screen is read from what the program wrote."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pyte

ENTER, TAB, UP, CTRL_C, CTRL_D = "\r", "\t", "\x1b[A", "\x03", "\x04"
_PASTE_MARKED = 2004 << 5  # as pyte counts private modes


class Terminal:
    """The terminal is the program's controlling one, so that Ctrl-C is a signal where the program wants that."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        columns: int = 80,
        rows: int = 50,
        seconds: float = 20,
    ) -> None:
        """Start the command in `folder`; `seconds` is the most that `wait` waits."""
        self._seconds = seconds
        self._leader, follower = os.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)

    def type(self, *keys: str) -> None:
        os.write(self._leader, "".join(keys).encode())

    def paste(self, text: str) -> None:
        """Paste or drop a text as a terminal does: marked, where the program has asked for that (mode 2004)."""
        marked = _PASTE_MARKED in self._screen.mode
        self.type(f"\x1b[200~{text}\x1b[201~" if marked else text.replace("\n", ENTER))

    def resize(self, columns: int, rows: int = 50) -> None:
        self._screen.resize(rows, columns)
        self._set_size(columns, rows)
        os.kill(self.process.pid, signal.SIGWINCH)

    def wait(self, text: str) -> str:
        """Read until the screen has `text`, and return the screen."""
        end = time.monotonic() + self._seconds
        while text not in self.screen():
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"no {text!r} on the screen:\n{self.screen()}")
        return self.screen()

    def ask(self, *keys: str) -> list[str]:
        """Type keys and Enter, wait for the next prompt, and return the lines between."""
        self._screen.reset()
        self.type(*keys, ENTER)
        return self.ready()

    def ready(self) -> list[str]:
        """Wait for the next prompt, and return the lines before it."""
        end = time.monotonic() + self._seconds
        while True:
            lines = self.screen().split("\n")
            if lines[-1].startswith(">") and len(lines) > 1 and self._screen.cursor.x == 2:
                return lines[:-1]
            if not self._read(end - time.monotonic()):
                raise AssertionError("no prompt:\n" + "\n".join(lines))

    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n")

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        end = time.monotonic() + self._seconds
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(self._seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, seconds: float) -> bool:
        """Read what was written, and return whether there was anything."""
        with suppress(OSError):  # the terminal's end, as Linux reports it
            if select.select([self._leader], [], [], max(0.0, seconds))[0]:
                data = os.read(self._leader, 1 << 16)
                self.written += data
                self._stream.feed(data)
                return bool(data)
        return False

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
