"""`pocketvlm locate`: where something is in pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.answer_report import ProgressBar, print_report
from pocketvlm.cli.command_options import (
    Fields,
    MaxTokens,
    Memory,
    Model,
    MorePictures,
    Resolution,
    check_detail,
    expand_options,
)
from pocketvlm.cli.console import waiting
from pocketvlm.cli.drawing import Drawing
from pocketvlm.cli.loading import load
from pocketvlm.cli.picture_arguments import has_pages, named_picture, question_and_pictures
from pocketvlm.cli.run_notes import RunNotes
from pocketvlm.errors import RequestError, printable
from pocketvlm.pictures.sources import is_url, local_path

if TYPE_CHECKING:
    from pocketvlm.messages import ImagePart, Region


@expand_options
def locate(
    thing: Annotated[str | None, typer.Argument(metavar="THING", help="What to locate: 'the red circle'.")] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="PICTURE", help="Pictures; - reads one from standard input.")
    ] = None,
    image: MorePictures = None,
    model: Model = None,
    *,
    options: Annotated[
        LoadOptions,
        Fields("mmproj", "vision", "device", "context_size", "threads", "picture_cache", "exact", "max_pixels"),
    ],
    memory: Memory = None,
    max_tokens: MaxTokens = None,
    detail: Resolution = "auto",
    draw: Annotated[
        Path | None, typer.Option(help="Write the picture with the boxes drawn in: .png, .jpg or .webp.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the boxes as JSON, in pixels of the picture.")] = False,
) -> None:
    """Locate something in pictures. The exit code is 1 where it is nowhere."""
    check_detail(detail)
    thing, arguments = question_and_pictures([word for word in (thing, *(more or ())) if word is not None])
    arguments = [*(image or ()), *arguments]
    if thing is None or not thing.strip():
        raise RequestError("say what to locate: pocketvlm locate 'the red circle' -i photo.jpg", "THING")
    if not arguments:
        raise RequestError("name a picture: pocketvlm locate 'the red circle' -i photo.jpg", "-i")
    from pocketvlm.pictures.images import read_picture

    drawing = Drawing(draw) if draw is not None else None
    parts = [_part(argument, options.max_pixels) for argument in arguments]
    with waiting("loading"):
        vlm = load(model, options, memory=memory)
    regions: list[Region] = []
    with vlm:
        vlm.check_notation()
        notes = RunNotes(vlm)
        for number, source in enumerate(parts):
            pixels = read_picture(source, "-i", max_pixels=options.max_pixels).pixels  # of one picture at a time
            with ProgressBar() as bar:
                part = {"type": "image", "image": pixels, "detail": detail}
                answer = vlm.locate_answer(part, thing, progress=bar, max_tokens=max_tokens)
            located = [region.model_copy(update={"image": number}) for region in answer.regions]
            regions += located
            if not as_json:
                for region in located:
                    typer.echo(_line(region, arguments if len(arguments) > 1 else ()))
                sys.stdout.flush()
            images = answer.timings.images
            cut = "--max-tokens" if max_tokens else "there are too many"
            is_cut = answer.choices[0].finish_reason == "length"
            print_report(images, notes.about_answer(answer.notes, images), cut=cut if is_cut else None)
            if drawing is not None and located:
                drawing.write({number: pixels}, located, several=len(parts) > 1)
    if as_json:
        text = json.dumps({"regions": [_fields(region) for region in regions]}, ensure_ascii=False)
        typer.echo(printable(text) if sys.stdout.isatty() else text)
    elif not regions:
        typer.echo(f"not located: {printable(thing)}", err=True)
    if not regions:
        raise typer.Exit(1)


def _part(argument: str, max_pixels: int) -> ImagePart:
    """Return a picture that is yet to be read, once its header is seen. Raises ImageError."""
    from pocketvlm.messages import ImagePart
    from pocketvlm.messages.field_errors import validated
    from pocketvlm.pictures.images import measure_picture

    source = named_picture(argument)
    if has_pages(source):
        raise RequestError(f"{argument} has pages; save the page as a picture first", "-i")
    key = "image" if isinstance(source, bytes) else "url" if is_url(source) else "path"
    part = validated(ImagePart, {"type": "image", key: source})
    path = local_path(part)
    if path is None or path.is_file() or not path.exists():  # a pipe can be read only once
        measure_picture(part, "-i", max_pixels=max_pixels)
    return part


def _fields(region: Region) -> dict[str, Any]:
    assert region.box is not None  # the answer is held to boxes
    return {"label": region.label, "image": region.image, "box": region.box.model_dump()}


def _line(region: Region, names: list[str] | tuple[()]) -> str:
    """Return a line about a region, with the name of its picture if there are several."""
    assert region.box is not None
    box = region.box
    name = f"{names[region.image]}: " if names else ""
    cut = "; cut off at the edge of what the model sees" if region.cut_off else ""
    place = f"x {box.x:.0f}, y {box.y:.0f}, width {box.width:.0f}, height {box.height:.0f}"
    return printable(f"{name}{region.label}: {place}{cut}".replace("\n", " "))
