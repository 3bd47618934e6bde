"""`pocketvlm plan`: what a model will take here, before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pocketvlm.cli.loading import Device, Encoder, Mmproj, Threads, check_detail, waiting
from pocketvlm.errors import MemoryBudgetError

if TYPE_CHECKING:
    from pocketvlm.plan.prediction import Planner, Prediction

out = Console(highlight=False, markup=False)


def plan(
    model: Annotated[
        Path | None, typer.Argument(help="A bundle, a .gguf or the name of a pulled model; iota without one.")
    ] = None,
    mmproj: Mmproj = None,
    memory: Annotated[str | None, typer.Option(help="What it may take, as 4G; what is free here by default.")] = None,
    picture: Annotated[str, typer.Option(help="The size of a picture in pixels.")] = "1920x1080",
    ctx: Annotated[int | None, typer.Option("--ctx", "--ctx-size", help="Context in tokens.")] = None,
    detail: Annotated[str, typer.Option(help="low, auto or high.")] = "auto",
    vision: Encoder = "auto",
    device: Device = "auto",
    parallel: Annotated[int, typer.Option(help="Requests that run together.")] = 1,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Predict memory, picture tokens and times here, and recommend what fits. Nothing is loaded in this process."""
    from pocketvlm.plan.budget import available, planner_for, read_picture_size, read_size

    check_detail(detail)
    size = read_picture_size(picture)
    budget = read_size(memory) if memory else available()
    file = str(model) if model and model.suffix.lower() == ".gguf" else None
    loading: dict[str, Any] = {"target": None if file else model, "model": file, "mmproj": mmproj, "context_size": ctx}
    loading |= {"vision": vision, "device": device, "parallel": parallel, "threads": threads}
    with waiting("measuring, once"):
        planner = planner_for(loading, picture=size)
    usual = planner.predict(planner.usual(detail))  # type: ignore[arg-type]  # checked above
    best: Prediction | None = None
    refused = ""
    if budget is not None:
        try:
            best = planner.within(budget, detail)  # type: ignore[arg-type]  # a choice that typer has checked
        except MemoryBudgetError as error:
            refused = error.message
    if as_json:
        typer.echo(json.dumps(_as_json(planner, usual, best, budget, refused), indent=2))
    else:
        _show(planner, usual, best, budget, refused)


def _as_json(
    planner: Planner, usual: Prediction, best: Prediction | None, budget: int | None, refused: str
) -> dict[str, Any]:
    def told(found: Prediction) -> dict[str, Any]:
        return {
            "memory_bytes": found.memory_bytes,
            "anonymous_bytes": found.anonymous_bytes,
            "mapped_bytes": found.mapped_bytes,
            "picture_tokens": found.picture_tokens,
            "picture_tiles": found.picture_tiles,
            "picture_size": found.picture_size,
            "first_token_s": found.first_token_s,
            "tokens_per_s": found.tokens_per_s,
            "context_size": found.way.context,
            "encoder": found.way.encoder if planner.encoders else None,
            "detail": found.way.detail,
            "max_image_tokens": found.way.most_tokens,
            "parts": found.parts,
        }

    types: dict[str, str] = {"language model": planner.type}
    types |= {encoder.kind: encoder.type for encoder in planner.encoders}
    fits = None if budget is None else usual.memory_bytes <= budget
    recommended = told(best) if best else None
    return {
        "model": planner.found.name,
        "types": types,
        **told(usual),
        "budget_bytes": budget,
        "fits": fits,
        "steady": planner.told.steady,
        "recommended": recommended,
        "refused": refused or None,
    }


def _show(planner: Planner, usual: Prediction, best: Prediction | None, budget: int | None, refused: str) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    encoders = ", ".join(f"{encoder.kind} {encoder.type}" for encoder in planner.encoders)
    table.add_row("model", f"{planner.found.name}: {planner.type}" + (f"; vision {encoders}" if encoders else ""))
    shown = [("as it is", usual)] + ([("within the budget", best)] if best and best.way != usual.way else [])
    for title, found in shown:
        table.add_row("", "")
        way = found.way
        words = [f"context {way.context}"]
        if planner.encoders:
            words += [f"--vision {way.encoder}", f"--detail {way.detail}"]
        if way.most_tokens:
            words.append(f"max_image_tokens {way.most_tokens}")
        table.add_row(title, ", ".join(words))
        table.add_row(
            "memory",
            f"{found.memory_bytes / 1e6:,.0f} MB: {found.anonymous_bytes / 1e6:,.0f} MB of its own, "
            f"{found.mapped_bytes / 1e6:,.0f} MB mapped from files",
        )
        for name, size in found.parts.items():
            table.add_row("", f"{size / 1e6:>9,.1f} MB  {name}")
        if planner.encoders:
            width, height = planner.picture
            seen = "{}x{}".format(*found.picture_size)
            told = f"is seen at {seen}: {found.picture_tokens} tokens, {found.picture_tiles} tiles"
            known = found.picture_tokens is not None
            table.add_row("picture", f"{width}x{height} {told if known else ': libmtmd decides how it is seen'}")
        first, speed = found.first_token_s, found.tokens_per_s
        table.add_row("first token", f"{first:.2f} s after a new picture" if first is not None else "not known")
        table.add_row("answer", f"{speed:,.1f} tokens/s" if speed else "not known")
        if not planner.told.steady:
            table.add_row("", "measured while other programs worked: it may be faster, and is measured again next time")
    table.add_row("", "")
    if budget is None:
        table.add_row("budget", "not known here; --memory gives one")
    else:
        verdict = refused or ("it fits" if best == usual else "it fits as above")
        table.add_row("budget", f"{budget / 1e6:,.0f} MB: {verdict}")
    out.print(table)
