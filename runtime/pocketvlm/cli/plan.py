"""`pocketvlm plan`: what a model needs on this machine, before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.catalog import find_catalog
from pocketvlm.cli.command_options import Fields, ModelArgument, Resolution, check_detail, expand_options
from pocketvlm.cli.console import waiting
from pocketvlm.cli.loading import load_arguments
from pocketvlm.errors import MemoryBudgetError, ModelNotFoundError
from pocketvlm.system.printable_console import PrintableConsole
from pocketvlm.system.terminal import Row, print_rows

if TYPE_CHECKING:
    from pocketvlm.plan.prediction import Planner, Prediction

out = PrintableConsole(highlight=False, markup=False)


@expand_options
def plan(
    model: ModelArgument = None,
    *,
    options: Annotated[
        LoadOptions, Fields("mmproj", "vision", "device", "context_size", "parallel", "threads", "cache_type")
    ],
    memory: Annotated[
        str | None, typer.Option(help="Memory budget, e.g. 4G or 512M; by default the memory that is free now.")
    ] = None,
    picture: Annotated[str, typer.Option(help="Size of a picture in pixels.")] = "1920x1080",
    detail: Resolution = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict memory, picture tokens and times on this machine, and recommend what fits, without loading the model.

    For a model of the catalogue that was not pulled, memory and tokens are estimated. Exits with code 1 if nothing
    fits.
    """
    from pocketvlm.plan.budget import available, read_picture_size, read_size

    check_detail(detail)
    size = read_picture_size(picture)
    budget = read_size(memory) if memory else available()
    with ExitStack() as stack:
        with waiting("measuring, once"):
            planner, pulled = _planner(model, options, size, stack)
        refused = _report(planner, pulled, detail, budget, as_json=as_json)
    if refused:
        raise typer.Exit(1)


def _planner(
    model: str | None, options: LoadOptions, picture: tuple[int, int], stack: ExitStack
) -> tuple[Planner, bool]:
    """Return what plans for the model, and whether its files are here; temporary ones are until `stack` is closed."""
    from pocketvlm.plan.budget import planner_for

    try:
        target, options = load_arguments(model, options)
    except ModelNotFoundError:
        catalog = find_catalog() if model and not options.mmproj else None
        planner = catalog.planner(model, options, picture) if catalog and model else None
        if planner is None:
            raise
        return stack.enter_context(planner), False
    return planner_for(target, options, picture=picture), True


def _report(planner: Planner, pulled: bool, detail: str, budget: int | None, *, as_json: bool) -> str:
    """Print the plan, and return why nothing fits; "" where something does."""
    usual = planner.predict(planner.usual(detail))  # type: ignore[arg-type]  # checked above
    best: Prediction | None = None
    refused = ""
    if budget is not None:
        try:
            best = planner.within(budget, detail)  # type: ignore[arg-type]  # checked above
        except MemoryBudgetError as error:
            refused = error.message
    if as_json:
        report = {"pulled": pulled, **_as_json(planner, usual, best, budget, refused)}
        typer.echo(json.dumps(report, indent=2))
    else:
        print_rows(out, _rows(planner, pulled, usual, best, budget, refused))
    return refused


def _as_json(
    planner: Planner, usual: Prediction, best: Prediction | None, budget: int | None, refused: str
) -> dict[str, Any]:
    def values(prediction: Prediction) -> dict[str, Any]:
        configuration = prediction.configuration
        return {
            "memory_bytes": prediction.memory_bytes,
            "anonymous_bytes": prediction.anonymous_bytes,
            "mapped_bytes": prediction.mapped_bytes,
            "picture_tokens": prediction.picture_tokens,
            "picture_tiles": prediction.picture_tiles,
            "picture_size": prediction.picture_size,
            "first_token_s": prediction.first_token_s,
            "tokens_per_s": prediction.tokens_per_s,
            "context_size": configuration.context,
            "encoder": configuration.encoder if planner.encoders else None,
            "cache_type": configuration.cache_type,
            "detail": configuration.detail,
            "max_image_tokens": configuration.max_tokens,
            "parts": prediction.parts,
        }

    types: dict[str, str] = {"language model": planner.type}
    types |= {encoder.kind: encoder.type for encoder in planner.encoders}
    fits = None if budget is None else usual.memory_bytes <= budget
    recommended = values(best) if best else None
    return {
        "model": planner.located.name,
        "types": types,
        "layout": planner.probe.layout,
        "threads": planner.probe.threads,
        **values(usual),
        "budget_bytes": budget,
        "fits": fits,
        "steady": planner.probe.steady,
        "recommended": recommended,
        "refused": refused or None,
    }


def _rows(
    planner: Planner, pulled: bool, usual: Prediction, best: Prediction | None, budget: int | None, refused: str
) -> Iterator[Row]:
    encoders = ", ".join(f"{encoder.kind} {encoder.type}" for encoder in planner.encoders)
    yield "model", f"{planner.located.name}: {planner.type}" + (f"; vision {encoders}" if encoders else "")
    if pulled:
        yield "weights", f"{planner.probe.layout} on the CPU"
    else:
        yield "", f"not pulled, so this is estimated; `pocketvlm pull {planner.located.name}` gets it"
    predictions = [("as it is", usual)] + (
        [("within the budget", best)] if best and best.configuration != usual.configuration else []
    )
    for title, prediction in predictions:
        yield "", ""
        yield from _prediction_rows(planner, title, prediction)
    yield "", ""
    if budget is None:
        yield "budget", "the free memory is not known here; set one with --memory"
    else:
        verdict = refused or ("it fits" if best == usual else "it fits as above")
        yield "budget", f"{budget / 1e6:,.0f} MB: {verdict}"


def _prediction_rows(planner: Planner, title: str, prediction: Prediction) -> Iterator[Row]:
    configuration = prediction.configuration
    choices = [f"context {configuration.context}", f"--cache-type {configuration.cache_type}"]
    if planner.encoders:
        choices += [f"--vision {configuration.encoder}", f"--detail {configuration.detail}"]
    if configuration.max_tokens:
        choices.append(f"max_image_tokens {configuration.max_tokens}")
    yield title, ", ".join(choices)
    own, mapped = prediction.anonymous_bytes / 1e6, prediction.mapped_bytes / 1e6
    total = prediction.memory_bytes / 1e6
    yield "memory", f"{total:,.0f} MB: {own:,.0f} MB of its own, {mapped:,.0f} MB mapped from files"
    for name, size in prediction.parts.items():
        yield "", f"{size / 1e6:>9,.1f} MB  {name}"
    if planner.encoders:
        yield "picture", _picture_text(planner, prediction)
    first, speed = prediction.first_token_s, prediction.tokens_per_s
    yield "first token", f"{first:.2f} s after a new picture" if first is not None else "not known"
    threads = f"{planner.probe.threads} thread{'s' * (planner.probe.threads != 1)}"
    yield "answer", f"{speed:,.1f} tokens/s on {threads}" if speed else "not known"
    if not planner.probe.steady:
        yield "", "measured while other programs ran: it may be faster, and is measured again next time"


def _picture_text(planner: Planner, prediction: Prediction) -> str:
    width, height = planner.picture
    if prediction.picture_tokens is None:
        return f"{width}x{height}: libmtmd decides at which size it is seen"
    seen = "{}x{}".format(*prediction.picture_size)
    tokens, tiles = prediction.picture_tokens, prediction.picture_tiles
    return f"{width}x{height} is seen at {seen}: {tokens} tokens, {tiles} tiles"
