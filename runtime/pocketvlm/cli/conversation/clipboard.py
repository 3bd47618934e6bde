"""Put a text on the clipboard: by a tool of the system, or else by the terminal (OSC 52)."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import TextIO

_SECONDS = 5.0


def copy(text: str, terminal: TextIO | None) -> str | None:
    """Copy a text, and return what took it; None where nothing can.

    Over SSH the clipboard of this machine is not the user's, so the terminal is asked; it may ignore that.
    """
    tool = _tool(os.environ)
    if tool and shutil.which(tool[0]):
        try:
            # Some tools stay to hand the text out, so their output must not be waited for.
            subprocess.run(
                tool,
                input=text.encode("utf-16" if tool[0] == "clip" else "utf-8"),  # UTF-8 would be OEM text to clip
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=True,
            )
            return tool[0]
        except (OSError, subprocess.SubprocessError):  # such as a display that is gone
            pass
    if terminal is None:
        return None
    terminal.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
    terminal.flush()
    return "the terminal"


def _tool(environment: Mapping[str, str]) -> list[str] | None:
    """Return the command whose standard input becomes the clipboard."""
    if environment.get("TMUX"):  # which ignores OSC 52 of programs; -w passes the text on to its terminal
        return ["tmux", "load-buffer", "-w", "-"]
    if environment.get("SSH_TTY") or environment.get("SSH_CONNECTION"):
        return None
    if sys.platform == "darwin":
        return ["pbcopy"]
    if sys.platform == "win32":
        return ["clip"]
    if environment.get("WAYLAND_DISPLAY"):
        return ["wl-copy"]
    if environment.get("DISPLAY"):
        return ["xclip", "-selection", "clipboard"] if shutil.which("xclip") else ["xsel", "--clipboard", "--input"]
    return None
