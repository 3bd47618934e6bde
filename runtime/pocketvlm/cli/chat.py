"""`pocketvlm chat`: one question, or a conversation."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.answer_report import ProgressBar, note, print_report
from pocketvlm.cli.command_options import (
    Changes,
    Fields,
    Fps,
    Frames,
    MaxTokens,
    Memory,
    Model,
    MorePictures,
    Pages,
    Password,
    Resolution,
    Temperature,
    check_detail,
    expand_options,
)
from pocketvlm.cli.console import waiting
from pocketvlm.cli.conversation.last_conversation import LastConversation, keep_last, read_last
from pocketvlm.cli.conversation.plain_answer import PlainAnswer
from pocketvlm.cli.conversation.state import Conversation
from pocketvlm.cli.conversation.terminal import begin_import, not_echoed
from pocketvlm.cli.drawing import Drawing, pictures_of
from pocketvlm.cli.help import ANSWERS
from pocketvlm.cli.loading import load_chosen
from pocketvlm.cli.picture_arguments import named_picture, question_and_pictures
from pocketvlm.cli.response_format import response_format
from pocketvlm.errors import RequestError, printable

if TYPE_CHECKING:
    from pocketvlm.messages import ImageTimings, Region, Timings


@expand_options
def chat(
    prompt: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question; without one, start a conversation.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="PICTURE", help="Pictures, PDFs or videos; - reads one from standard input."),
    ] = None,
    image: MorePictures = None,
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
    go_on: Annotated[bool, typer.Option("-c", "--continue", help="Go on with the last conversation.")] = False,
    private: Annotated[
        bool,
        typer.Option("--private", help="Keep neither what is typed nor the conversation.", envvar="POCKETVLM_PRIVATE"),
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Show pictures small, as the model sees them.")
    ] = True,
    draw: Annotated[
        Path | None,
        typer.Option(help="Write the picture with the places that the answer names: .png, .jpg or .webp."),
    ] = None,
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
    if prompt is None and draw is not None:
        raise RequestError("needs a question; give one as the argument", "--draw")
    drawing = Drawing(draw) if draw is not None else None
    pictures = [named_picture(argument) for argument in image]
    fields: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if reasoning_effort is not None:
        fields["reasoning_effort"] = reasoning_effort
    if json_schema is not None:
        fields["response_format"] = response_format(json_schema)
    frames_of_videos = {"fps": fps, "frames": frames, "changes": changes or None}
    options_of_files = {"pages": pages, "password": password, **frames_of_videos, "detail": detail}
    last = None
    if go_on:
        last, missing = read_last()
        for path in missing:
            note(f"{path} is no longer there; the conversation goes on without it")
        if model is None and options.mmproj is None:
            model, options = last.model, replace(options, mmproj=last.mmproj)
    if prompt is None:
        begin_import("edited_lines")
    with not_echoed() if prompt is None else nullcontext(), waiting("loading"):
        vlm, chosen = load_chosen(model, options, memory=memory)
    conversation = Conversation(vlm, system, options_of_files, **fields)
    conversation.use(vlm, chosen)
    with closing(conversation):
        if drawing is not None:
            vlm.check_notation()
        if last is not None:
            conversation.go_on_with(last.messages, None if missing else last.seen)
            if system is not None:
                conversation.system = system
        if prompt is None:
            from pocketvlm.cli.conversation.models import Models
            from pocketvlm.cli.conversation.talk import talk

            models = Models(model, options, memory)
            talk(conversation, models, pictures, private=private, preview=preview, timings=timings)
        elif as_json:
            with ProgressBar() as bar:
                messages = conversation.ask(prompt, *pictures)
                answer = vlm.chat(messages, progress=bar, **fields)
            images = answer.timings.images
            print_report(images, conversation.run_notes.about_answer(answer.notes, images))
            text = answer.model_dump_json(indent=2)
            typer.echo(printable(text) if sys.stdout.isatty() else text)
            conversation.add(messages, answer.text, before=conversation.seen, seen=len(answer.timings.images))
            regions = answer.regions
        else:
            messages, regions, images = _answer_once(conversation, prompt, pictures, timings=timings)
        if prompt is not None and drawing is not None:
            drawing.write(pictures_of(messages, images, regions, conversation.max_pixels), regions)
        if prompt is not None and last is not None and not private:
            mmproj = str(options.mmproj) if options.mmproj else None
            keep_last(LastConversation(conversation.messages, conversation.seen, model, mmproj), note)


def _answer_once(
    conversation: Conversation, question: str, pictures: list[str | bytes], *, timings: bool
) -> tuple[list[dict[str, Any]], list[Region], list[ImageTimings]]:
    """Print the answer as it comes, and keep question and answer.

    Return the messages of the request, and the answer's regions in the pictures that are reported.
    """
    messages = conversation.ask(question, *pictures)
    shown = PlainAnswer(sys.stdout, clean=sys.stdout.isatty())
    texts: list[str] = []
    measured: Timings | None = None
    notes: list[str] | None = None
    cut = False
    regions: list[Region] = []
    with ProgressBar() as bar:
        for chunk in conversation.stream(messages, progress=bar):
            bar.end()
            texts.append(chunk.text)
            measured, notes = chunk.timings or measured, chunk.notes or notes
            cut = any(choice.finish_reason == "length" for choice in chunk.choices)
            regions += (region for choice in chunk.choices for region in choice.delta.regions or ())
            shown.add(chunk.text)
    shown.end()
    reason = "--max-tokens" if conversation.fields["max_tokens"] else "the context is full"
    before = conversation.seen
    images = measured.images if measured else []
    lines = conversation.run_notes.about_answer(notes, images[before:])
    print_report(images[before:], lines, measured if timings else None, cut=reason if cut else None)
    conversation.add(messages, "".join(texts), before=before, seen=len(images))
    return messages, regions, images
