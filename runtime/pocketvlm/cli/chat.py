"""`pocketvlm chat`: one question, or a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from pocketvlm.cli.loading import (
    PICTURE_FILES_SIZE,
    Device,
    Encoder,
    MaxTokens,
    Memory,
    Mmproj,
    Model,
    PictureCache,
    PictureCacheSize,
    PictureFilesSize,
    Resolution,
    Speculate,
    Temperature,
    Threads,
    check_detail,
    kept,
    load,
    told,
    waiting,
)
from pocketvlm.errors import (
    ContextLengthError,
    ImageError,
    PictureCacheError,
    PocketVLMError,
    RequestError,
    SessionError,
)

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.messages import Timings

HELP = (
    "[dim]/image PATH shows a picture, /reset starts again, /save FILE keeps the conversation, /load FILE goes on with "
    "one, /timings says what took how long, /clear-cache forgets what was computed of pictures, /quit ends.[/dim]"
)
err = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())  # lines stay whole in a file


def chat(
    prompt: Annotated[str | None, typer.Argument(help="The question; without one, a conversation.")] = None,
    image: Annotated[
        list[str] | None, typer.Option("-i", "--image", help="A picture; may be repeated; - reads standard input.")
    ] = None,
    model: Model = None,
    mmproj: Mmproj = None,
    vision: Encoder = "auto",
    device: Device = "auto",
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    detail: Resolution = "auto",
    ctx_size: Annotated[
        int | None, typer.Option(help="Context in tokens; the model's own up to 8192 by default.")
    ] = None,
    threads: Threads = None,
    picture_cache_size: PictureCacheSize = None,
    picture_cache: PictureCache = None,
    picture_files_size: PictureFilesSize = PICTURE_FILES_SIZE,
    speculate: Speculate = "auto",
    memory: Memory = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with a JSON Schema; answers are JSON that is valid by it.")
    ] = None,
    reasoning_effort: Annotated[
        str | None, typer.Option(help="For models that think: none, minimal, low, medium, high, xhigh.")
    ] = None,
    timings: Annotated[bool, typer.Option("--timings", help="Say after each answer what took how long.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Ask about a picture, or talk about several."""
    check_detail(detail)
    if prompt is None and as_json:
        raise RequestError("needs a question", "--json")
    if prompt is None and "-" in (image or []):
        raise RequestError("needs a question: standard input cannot be both picture and conversation", "-i -")
    pictures = [_source(given) for given in image or []]
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if reasoning_effort is not None:
        options["reasoning_effort"] = reasoning_effort
    if json_schema is not None:
        options["response_format"] = _form(json_schema)
    loading: dict[str, Any] = {"context_size": ctx_size, "threads": threads, "vision": vision, "device": device}
    loading["speculate"] = speculate
    loading |= kept(picture_cache_size, picture_cache, picture_files_size)
    with waiting("loading"):
        vlm = load(model, mmproj, memory=memory, **loading)
    with vlm:
        conversation = _Conversation(vlm, system, detail, options)
        conversation.tells_timings = timings
        if prompt is None:
            for picture in pictures:
                conversation.show(picture)
            _talk(conversation)
        elif as_json:
            with _Bar() as bar:
                answer = vlm.chat(conversation.ask(prompt, pictures), progress=bar, **options)
            typer.echo(answer.model_dump_json(indent=2))
        else:
            conversation.answer(prompt, pictures)


_LARGEST_SCHEMA = 1 << 24  # bytes


def _form(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:  # which may be a device without an end
            schema = json.loads(file.read(_LARGEST_SCHEMA).decode())
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", "--json-schema") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON Schema: {error}", "--json-schema") from None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _source(given: str) -> str | bytes:
    if given != "-":
        return given
    data = sys.stdin.buffer.read()
    if not data:
        raise ImageError("standard input is empty", "-i -")
    return data


class _Conversation:
    def __init__(self, vlm: VLM, system: str | None, detail: str, options: dict[str, Any]) -> None:
        self.vlm = vlm
        self._system = system
        self._detail = detail
        self._options = options
        self.tells_timings = False
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = []
        if self._system:
            self.messages.append({"role": "system", "content": self._system})
        self._waiting: list[str | bytes] = []

    def show(self, picture: str | bytes) -> None:
        """Check a picture now, and put it before the next question."""
        from pocketvlm.messages import ImagePart
        from pocketvlm.pictures.images import read_picture

        read_picture(ImagePart.model_validate(self._part(picture)), "picture")
        self._waiting.append(picture)

    def ask(self, prompt: str, pictures: list[str | bytes]) -> list[dict[str, Any]]:
        parts = [self._part(picture) for picture in (*self._waiting, *pictures)]
        return [*self.messages, {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]

    def answer(self, prompt: str, pictures: list[str | bytes]) -> None:
        """Print the answer as it comes, and remember both; an interrupted turn is forgotten."""
        asked = self.ask(prompt, pictures)
        said: list[str] = []
        timings: Timings | None = None
        cut = False
        with _Bar() as bar:
            for chunk in self.vlm.stream(asked, progress=bar, **self._options):
                bar.end()
                said.append(chunk.text)
                timings = chunk.timings or timings
                cut = any(choice.finish_reason == "length" for choice in chunk.choices)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        sys.stdout.write("\n")
        images = timings.images if timings else []
        for picture in images[len(images) - len(self._waiting) - len(pictures) :]:
            if picture.shrunk:
                (width, height), (w, h) = picture.original_size, picture.used_size
                err.print(f"[dim]The picture of {width}x{height} was seen at {w}x{h} pixels.[/dim]")
        if cut:
            why = "--max-tokens" if self._options["max_tokens"] else "the context is full, /reset starts again"
            err.print(f"[dim]The answer was cut short: {why}.[/dim]")
        if timings and self.tells_timings:
            err.print(f"[dim]{_told(timings)}[/dim]")
        self._waiting = []
        self.messages = [*asked, {"role": "assistant", "content": "".join(said).strip()}]

    def toggle_timings(self) -> None:
        self.tells_timings = not self.tells_timings

    def save(self, path: str) -> None:
        self.vlm.save(path, self.messages, **self._options)

    def load(self, path: str) -> None:
        self.messages = self.vlm.restore(path)
        self._waiting = []

    def _part(self, picture: str | bytes) -> dict[str, Any]:
        if isinstance(picture, bytes):
            return {"type": "image", "image": picture, "detail": self._detail}
        kind = "url" if picture.startswith(("data:", "http:", "https:", "file:")) else "path"
        return {"type": "image", kind: picture, "detail": self._detail}


def _told(timings: Timings) -> str:
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
        decode += f", drafted {timings.drafted_tokens}, of which right {timings.accepted_tokens}"
    return "\n".join([*lines, f"queue {timings.queue_ms:.0f} ms, prefill {prefill}, decode {decode}"])


class _Bar:
    """A progress bar on standard error while tiles are encoded, where somebody looks."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("looking at the picture"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._progress.add_task("", visible=False)
        self._on = False

    def __call__(self, done: int, total: int) -> None:
        if total < 2:
            return
        if not self._on:
            self._progress.start()
            self._on = True
        self._progress.update(self._task, completed=done, total=total, visible=True)

    def end(self) -> None:
        if self._on:
            self._progress.stop()
            self._on = False

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _talk(conversation: _Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()

    interactive = sys.stdin.isatty()
    if interactive:
        err.print(f"[bold]{escape(conversation.vlm.info.name)}[/bold]  {HELP}")
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
            err.print(f"[red]error:[/red] {escape(told(_as_error(error)))}")


def _as_error(error: Exception) -> PocketVLMError:
    return error if isinstance(error, PocketVLMError) else PocketVLMError(str(error))


def _command(conversation: _Conversation, line: str) -> bool:
    """Carry out a /command; False ends the conversation."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[], None]] = {
        "/image": lambda: conversation.show(rest),
        "/reset": conversation.reset,
        "/save": lambda: conversation.save(rest),
        "/load": lambda: conversation.load(rest),
        "/timings": conversation.toggle_timings,
        "/clear-cache": conversation.vlm.clear_picture_cache,
        "/help": lambda: err.print(HELP),
    }
    if name in ("/quit", "/exit"):
        return False
    if name not in commands:
        raise RequestError(f"there is no {name}; /help tells what there is")
    if name in ("/image", "/save", "/load") and not rest:
        raise RequestError("needs a path", name)
    commands[name]()
    return True
