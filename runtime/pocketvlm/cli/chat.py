"""`pocketvlm chat`: one question, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import (
    Changes,
    Fields,
    Fps,
    Frames,
    MaxTokens,
    Memory,
    Model,
    Pages,
    Password,
    Resolution,
    Temperature,
    check_detail,
    expand_options,
)
from pocketvlm.cli.console import error_message, waiting
from pocketvlm.cli.help import ANSWERS
from pocketvlm.cli.loading import load
from pocketvlm.cli.picture_arguments import URLS, has_pages, question_and_pictures
from pocketvlm.cli.response_format import response_format
from pocketvlm.cli.run_notes import RunNotes
from pocketvlm.cli.typed_path import leading_path, typed_path
from pocketvlm.errors import (
    ContextLengthError,
    ImageError,
    PictureCacheError,
    PocketVLMError,
    RequestError,
    SessionError,
)
from pocketvlm.system.option_names import with_flags

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.messages import ImageTimings, Timings

HELP = (
    "[dim]/image PATH shows a picture, /reset starts again, /save FILE writes the conversation to a file, /load FILE "
    "goes on with one, /timings prints how long answers take, /clear-cache forgets the embeddings of pictures, /quit "
    "ends.[/dim]"
)
err = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())  # lines stay whole in a file


@expand_options
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question; without one, start a conversation.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="PICTURE", help="Pictures, PDFs or videos; - reads one from standard input."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("-i", "--image", metavar="PICTURE...", help="Pictures, too: all files that follow, as *.png."),
    ] = None,
    model: Model = None,
    *,
    options: Annotated[
        LoadOptions,
        Fields(
            "mmproj",
            "vision",
            "device",
            "context_size",
            "threads",
            "picture_cache_size",
            "picture_cache",
            "picture_files_size",
            "speculate",
            "exact",
            "cache_type",
            "max_pixels",
        ),
    ],
    memory: Memory = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling, to get the same answer again.", rich_help_panel=ANSWERS)
    ] = None,
    detail: Resolution = "auto",
    json_schema: Annotated[
        Path | None,
        typer.Option(help="File with a JSON Schema; answers are JSON that is valid by it.", rich_help_panel=ANSWERS),
    ] = None,
    reasoning_effort: Annotated[
        str | None,
        typer.Option(help="For models that think: none, minimal, low, medium, high or xhigh.", rich_help_panel=ANSWERS),
    ] = None,
    pages: Pages = None,
    password: Password = None,
    fps: Fps = None,
    frames: Frames = None,
    changes: Changes = False,
    timings: Annotated[bool, typer.Option("--timings", help="Print after each answer how long it took.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Ask about a picture, or talk about several."""
    check_detail(detail)
    prompt, arguments = question_and_pictures([word for word in (prompt, *(more or ())) if word is not None])
    image = [*(image or ()), *arguments]
    if prompt is None and as_json:
        raise RequestError("needs a question; give one as the argument", "--json")
    if prompt is None and "-" in image:
        raise RequestError("needs a question: standard input cannot be both picture and conversation", "-i -")
    pictures = [_source(argument) for argument in image]
    fields: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if reasoning_effort is not None:
        fields["reasoning_effort"] = reasoning_effort
    if json_schema is not None:
        fields["response_format"] = response_format(json_schema)
    with waiting("loading"):
        vlm = load(model, options, memory=memory)
    with vlm:
        frames_of_videos = {"fps": fps, "frames": frames, "changes": changes or None}
        options_of_files = {"pages": pages, "password": password, **frames_of_videos, "detail": detail}
        conversation = _Conversation(
            vlm, system, options_of_files, fields, max_pixels=options.max_pixels, timings=timings
        )
        if prompt is None:
            for picture in pictures:
                conversation.show(picture)
            _talk(conversation)
        elif as_json:
            with _ProgressBar() as bar:
                answer = vlm.chat(conversation.ask(prompt, pictures), progress=bar, **fields)
            _print_notes(answer.timings.images)
            for line in conversation.run_notes.about_answer(answer.notes, answer.timings.images):
                err.print(f"[dim]{escape(line)}[/dim]")
            typer.echo(answer.model_dump_json(indent=2))
        else:
            conversation.answer(prompt, pictures)


def _source(argument: str) -> str | bytes:
    if argument != "-":
        return _picture(argument)
    data = sys.stdin.buffer.read()
    if not data:
        raise ImageError("standard input is empty; it should be a picture", "-i -")
    return data


def _picture(argument: str) -> str:
    """Return the path or URL of a picture that a person has typed."""
    return argument if argument.startswith(URLS) else typed_path(argument)


class _Conversation:
    """The messages so far, and what the next question goes with."""

    def __init__(
        self,
        vlm: VLM,
        system: str | None,
        options: dict[str, Any],
        fields: dict[str, Any],
        *,
        max_pixels: int,
        timings: bool,
    ) -> None:
        """`options` are those of each picture."""
        self.vlm = vlm
        self._max_pixels = max_pixels
        self._system = system
        self._options = options
        self._fields = fields
        self._print_timings = timings
        self.run_notes = RunNotes(vlm)
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = []
        if self._system:
            self.messages.append({"role": "system", "content": self._system})
        self._pending: list[str | bytes] = []  # pictures of the next question
        self._shown = 0  # pictures of the questions before

    def show(self, picture: str | bytes) -> None:
        """Check a picture or the first page of a document, and put it before the next question."""
        from pocketvlm.documents.limits import DocumentLimits
        from pocketvlm.documents.open_document import open_part
        from pocketvlm.messages import FilePart
        from pocketvlm.messages.field_errors import validated

        part = validated(FilePart, {**self._part(picture), "type": "file"})
        with open_part(part, "picture", DocumentLimits(), self._max_pixels) as document:
            next(document.pages(part.pages)).read()
        self._pending.append(picture)

    def ask(self, prompt: str, pictures: list[str | bytes]) -> list[dict[str, Any]]:
        """Return the messages of a request: all so far, then the question after its pictures."""
        parts = [self._part(picture) for picture in (*self._pending, *pictures)]
        return [*self.messages, {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]

    def answer(self, prompt: str, pictures: list[str | bytes]) -> None:
        """Print the answer as it comes, and keep question and answer. An interrupted turn is forgotten."""
        messages = self.ask(prompt, pictures)
        texts: list[str] = []
        timings: Timings | None = None
        notes: list[str] | None = None
        cut = False
        with _ProgressBar() as bar:
            for chunk in self.vlm.stream(messages, progress=bar, **self._fields):
                bar.end()
                texts.append(chunk.text)
                timings, notes = chunk.timings or timings, chunk.notes or notes
                cut = any(choice.finish_reason == "length" for choice in chunk.choices)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        sys.stdout.write("\n")
        images = timings.images if timings else []
        images, self._shown = images[self._shown :], len(images)
        _print_notes(images)
        for line in self.run_notes.about_answer(notes, images):
            err.print(f"[dim]{escape(line)}[/dim]")
        if cut:
            reason = "--max-tokens" if self._fields["max_tokens"] else "the context is full, /reset starts again"
            err.print(f"[dim]The answer was cut short: {reason}.[/dim]")
        if timings and self._print_timings:
            err.print(f"[dim]{_timings_text(timings)}[/dim]")
        self._pending = []
        self.messages = [*messages, {"role": "assistant", "content": "".join(texts).strip()}]

    def toggle_timings(self) -> None:
        self._print_timings = not self._print_timings

    def save(self, path: str) -> None:
        self.vlm.save(path, self.messages, **self._fields)

    def load(self, path: str) -> None:
        self.messages = self.vlm.restore(path)
        self._pending = []
        self._shown = sum(_has_picture(part) for message in self.messages for part in message.get("content") or ())

    def _part(self, picture: str | bytes) -> dict[str, Any]:
        options = {name: value for name, value in self._options.items() if value is not None}
        source = "image" if isinstance(picture, bytes) else "url" if picture.startswith(URLS) else "path"
        kind = "file" if options.keys() & {"pages", "fps", "frames", "changes"} or has_pages(picture) else "image"
        return {"type": kind, source: picture, **options}


def _has_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") != "text"


def _print_notes(images: list[ImageTimings]) -> None:
    for number, image in enumerate(images, 1):
        name = f"picture {number}" if len(images) > 1 else "picture"
        for note in image.notes:
            err.print(f"[dim]{name}: {escape(with_flags(note))}[/dim]")


def _timings_text(timings: Timings) -> str:
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


class _ProgressBar:
    """A progress bar on standard error while tiles are encoded, if it is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("looking at the picture"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
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

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _talk(conversation: _Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()

    interactive = sys.stdin.isatty()
    if interactive:
        err.print(f"[bold]{escape(conversation.vlm.info.name)}[/bold]  {HELP}")
        if line := conversation.run_notes.about_model():
            err.print(f"[dim]{escape(line)}[/dim]")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            err.print()
            raise
        try:
            if line.startswith("/"):
                if not _command(conversation, line):
                    return
            elif line:
                if (path := leading_path(line)) and ("/" in path or Path(path).suffix):
                    err.print(
                        f"[dim]{escape(path)} is a file, which the model does not see; use /image {escape(path)}[/dim]"
                    )
                conversation.answer(line, [])
        except KeyboardInterrupt:
            err.print("\n[dim]stopped[/dim]")
        except ContextLengthError as error:
            if not interactive:
                raise
            err.print(
                f"[yellow]The conversation no longer fits: {escape(error.message)}.[/yellow] /reset starts again."
            )
        except (RequestError, SessionError, PictureCacheError, OSError) as error:
            if not interactive:
                raise _as_error(error) from None
            err.print(f"[red]error:[/red] {escape(error_message(_as_error(error)))}")


def _as_error(error: Exception) -> PocketVLMError:
    return error if isinstance(error, PocketVLMError) else PocketVLMError(str(error))


def _command(conversation: _Conversation, line: str) -> bool:
    """Carry out a /command; False ends the conversation."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    commands: dict[str, Callable[[], None]] = {
        "/image": lambda: conversation.show(_picture(argument)),
        "/reset": conversation.reset,
        "/save": lambda: conversation.save(typed_path(argument, alike=False)),
        "/load": lambda: conversation.load(typed_path(argument)),
        "/timings": conversation.toggle_timings,
        "/clear-cache": conversation.vlm.clear_picture_cache,
        "/help": lambda: err.print(HELP),
    }
    if name in ("/quit", "/exit"):
        return False
    if name not in commands:
        if path := leading_path(line):
            raise RequestError(f"{path} is a file; use /image {path} to show it, then ask")
        raise RequestError(f"unknown command {name}; /help lists the commands")
    if name in ("/image", "/save", "/load") and not argument:
        raise RequestError(f"needs a path; use {name} PATH", name)
    commands[name]()
    return True
