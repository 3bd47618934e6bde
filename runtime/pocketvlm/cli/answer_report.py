"""What is printed about an answer on standard error: progress while pictures are encoded, notes, timings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pocketvlm.cli.progress_bars import progress_bar
from pocketvlm.system.option_names import with_flags
from pocketvlm.system.printable_console import PrintableConsole

if TYPE_CHECKING:
    from pocketvlm.messages import ImageTimings, Timings

err = PrintableConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())  # lines stay whole in a file


def note(text: str) -> None:
    """Print a dim line."""
    err.print(f"[dim]{escape(text)}[/dim]")


def print_report(
    images: Sequence[ImageTimings], lines: Sequence[str], timings: Timings | None = None, cut: str | None = None
) -> None:
    """Print the notes on the new pictures of a question, `lines` about the answer, why it was `cut`, and `timings`."""
    for number, image in enumerate(images, 1):
        name = f"picture {number}" if len(images) > 1 else "picture"
        for text in image.notes:
            note(f"{name}: {with_flags(text)}")
    for line in lines:
        note(line)
    if cut:
        note(f"The answer was cut short: {cut}.")
    if timings:
        note(timings_text(timings))


def timings_text(timings: Timings) -> str:
    lines = []
    for number, image in enumerate(timings.images, 1):
        (width, height), (w, h) = image.original_size, image.used_size
        lines.append(
            f"picture {number}: {width}x{height} seen at {w}x{h}, tiles {image.tiles}, tokens {image.tokens}, "
            f"cache {image.cache}; read {image.read_ms:.0f} ms, preprocess {image.preprocess_ms:.0f} ms, "
            f"encode {image.encode_ms:.0f} ms"
        )
    prefill, decode = (
        f"{ms:.0f} ms" + (f" ({speed:.0f} tokens/s)" if speed else "")
        for ms, speed in (
            (timings.prefill_ms, timings.prefill_tokens_per_second),
            (timings.decode_ms, timings.decode_tokens_per_second),
        )
    )
    if timings.drafted_tokens:
        decode += f", drafted {timings.drafted_tokens}, accepted {timings.accepted_tokens}"
    return "\n".join([*lines, f"queue {timings.queue_ms:.0f} ms, prefill {prefill}, decode {decode}"])


class ProgressBar:
    """A progress bar on standard error while tiles are encoded, if it is a terminal."""

    def __init__(self) -> None:
        self._progress = progress_bar(err, "looking at the picture", count=True)
        self._task = self._progress.add_task("", visible=False)
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        if total < 2:
            return
        if not self._shown:
            self._progress.start()
            self._shown = True
        self._progress.update(self._task, completed=done, total=total, visible=True)

    def end(self) -> None:
        if self._shown:
            self._progress.stop()
            self._shown = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()
