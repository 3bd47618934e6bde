"""`pocketvlm decide`: the probability of each answer, and an exit code for shells."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.answer_report import ProgressBar, err, note, print_report
from pocketvlm.cli.command_options import (
    Choice,
    Fields,
    Memory,
    Model,
    MorePictures,
    Pages,
    Password,
    Resolution,
    Scale,
    YesNo,
    check_detail,
    expand_options,
    given_choices,
)
from pocketvlm.cli.console import waiting
from pocketvlm.cli.help import ANSWERS
from pocketvlm.cli.loading import load
from pocketvlm.cli.picture_arguments import has_pages, named_picture, question_and_pictures
from pocketvlm.cli.run_notes import RunNotes
from pocketvlm.errors import RequestError, printable

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.decisions.choices import Choices
    from pocketvlm.decisions.decision import Decision

_UNLIKELY = 0.1  # the coverage below which the model would rather answer something else


@expand_options
def decide(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION PICTURE...", help="Question, and pictures; - reads one.")
    ] = None,
    image: MorePictures = None,
    model: Model = None,
    *,
    yes_no: YesNo = False,
    choice: Choice = None,
    scale: Scale = None,
    at: Annotated[
        float | None,
        typer.Option(
            help="Exit code 0 from this probability on, of yes or of the likeliest choice, else 1; with --scale, from "
            "this mean number on. By default 0.5 for --yes-no; otherwise the exit code is 0.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Labelled pictures (.csv or .jsonl with image, prompt, answer), to calibrate probabilities; "
            "--calibration names the file to write.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    options: Annotated[
        LoadOptions,
        Fields(
            "calibration",
            "mmproj",
            "vision",
            "device",
            "context_size",
            "threads",
            "picture_cache",
            "exact",
            "cache_type",
            "max_pixels",
        ),
    ],
    memory: Memory = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    detail: Resolution = "auto",
    pages: Pages = None,
    password: Password = None,
) -> None:
    """Decide between answers about a picture: print how likely each is, and end with exit code 0 or 1."""
    from pocketvlm.decisions.choices import choices_of

    check_detail(detail)
    given = given_choices(choice, yes_no, scale)
    if not given:
        raise RequestError("is needed, or --choice twice, or --scale 0-10", "--yes-no")
    choices = choices_of(**given)
    _check_threshold(at, choices)
    question, pictures = question_and_pictures(words or [])
    pictures = [*(image or ()), *pictures]
    files = {"pages": pages, "password": password, "detail": detail}

    def messages(question: str, pictures: list[str | bytes]) -> list[Any]:
        content = [*(_part(picture, files) for picture in pictures), {"type": "text", "text": question}]
        start = [{"role": "system", "content": system}] if system else []
        return [*start, {"role": "user", "content": content}]

    if calibrate is not None:
        ignored = {"PICTURE": pictures != [], "--at": at is not None, "--json": as_json}
        if name := next((name for name, is_given in ignored.items() if is_given), None):
            raise RequestError("has no effect with --calibrate, which asks about the pictures in its file", name)
        _calibrate(calibrate, choices, question, options, model, memory, messages)
        return
    if question is None:
        raise RequestError("is missing", "QUESTION")
    read = [named_picture(picture) for picture in pictures]
    with waiting("loading"):
        vlm = load(model, options, memory=memory)
    with vlm:
        with ProgressBar() as bar:
            decision = vlm.decide(messages(question, read), **given, progress=bar)
        images = decision.timings.images
        notes = RunNotes(vlm).about_answer(None, images)
    _print(decision, as_json=as_json)
    print_report(images, notes)
    if decision.coverage < _UNLIKELY:
        note(
            f"The model would rather answer something else: all these answers have a probability of "
            f"{decision.coverage:.2g}. Ask it with pocketvlm chat, and use its words."
        )
    sys.exit(0 if _is_met(decision, at) else 1)


def _check_threshold(at: float | None, choices: Choices) -> None:
    if at is None or choices.kind == "scale":
        return
    if not 0 <= at <= 1:
        raise RequestError("must be a probability from 0 to 1", "--at")


def _is_met(decision: Decision, at: float | None) -> bool:
    if decision.expectation is not None:
        return at is None or decision.expectation >= at
    if decision.kind == "yes_no":
        return decision.probability >= (0.5 if at is None else at)
    return at is None or decision.probability >= at


def _print(decision: Decision, *, as_json: bool) -> None:
    if as_json:
        text = decision.model_dump_json(indent=2)
    else:
        likely = sorted(decision.probabilities.items(), key=lambda pair: -pair[1])
        if decision.kind != "choice":
            likely = [*decision.probabilities.items()]
        lines = [f"{probability:7.1%}  {name}" for name, probability in likely]
        if decision.expectation is not None:
            lines.append(f"{decision.expectation:7.2f}  on average")
        text = "\n".join(lines)
    typer.echo(printable(text) if sys.stdout.isatty() else text)


def _part(picture: str | bytes, options: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a message that shows a picture, or pages of a file."""
    given = {name: value for name, value in options.items() if value is not None}
    if not (has_pages(picture) or given.get("pages")):
        given.pop("pages", None)
        return {"type": "image", "image": picture, "detail": given["detail"]}
    return {"type": "file", "image" if isinstance(picture, bytes) else "path": picture, **given}


def _calibrate(
    source: Path,
    choices: Choices,
    question: str | None,
    options: LoadOptions,
    model: str | None,
    memory: str | None,
    messages: Any,
) -> None:
    """Fit the temperature of a model's decisions on labelled pictures, print what it does, and write it."""
    from pocketvlm.batch.labelled import read_labelled
    from pocketvlm.decisions.calibration import Calibration, Example

    if options.calibration is None:
        raise RequestError("is needed: the file to write", "--calibration")
    target = Path(options.calibration)
    if not target.parent.is_dir():
        raise RequestError("is not in a folder that exists", str(target))
    labelled = read_labelled(source, choices, question)
    with waiting("loading"):
        vlm = load(model, replace(options, calibration=None), memory=memory)
    examples: list[Example] = []
    with vlm:
        for one, decision in _decisions(vlm, labelled, choices, messages):
            examples.append(Example(tuple(decision.logprobs.values()), one.answer))
        calibration = Calibration.fitted(examples, model=vlm.info.name, fingerprint=vlm.info.fingerprint)
    calibration.write(target)
    right = sum(max(range(len(e.logprobs)), key=e.logprobs.__getitem__) == e.answer for e in examples)
    typer.echo(
        f"{len(examples):,} questions, {right / len(examples):.1%} right\n"
        f"temperature {calibration.temperature:.3f}\n"
        f"expected calibration error {calibration.error_before:.3f} before, {calibration.error_after:.3f} after\n"
        f"log loss {calibration.loss_before:.3f} before, {calibration.loss_after:.3f} after"
    )
    err.print(f"written to {printable(str(target))}", markup=False)


def _decisions(vlm: VLM, labelled: Any, choices: Choices, messages: Any) -> Any:
    """Yield each labelled question with its decision, and show how many are done."""
    from pocketvlm.cli.progress_bars import progress_bar
    from pocketvlm.messages import ChatRequest

    with progress_bar(err, "deciding", count=True, left=True) as bar:
        task = bar.add_task("", total=len(labelled))
        for one in labelled:
            try:
                request = ChatRequest.parse(messages(one.question, list(one.pictures)))
                decision = vlm.run_decision(request, choices)
            except RequestError as error:
                raise RequestError(error.message, one.place) from None
            bar.advance(task)
            yield one, decision
