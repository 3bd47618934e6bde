"""From the options of `pocketvlm serve` to the models that it serves, and the memory that they may take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.console import waiting
from pocketvlm.cli.loading import load_arguments
from pocketvlm.cli.typed_path import exists
from pocketvlm.errors import RequestError, quoted, shortened

if TYPE_CHECKING:
    from pocketvlm.files.locate import Located
    from pocketvlm.server.served_model import ModelSource

_NAMED = re.compile(r"([A-Za-z0-9][\w.:/-]*)=(.+)", re.DOTALL)
_PAIR = re.compile(r"(.+\.gguf)\+(.+\.(?:gguf|onnx))", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Served:
    """`memory` is what all engines may take together, in bytes; None: there is no limit.

    `max_pixels` is the largest picture that every model has room for.
    """

    sources: tuple[ModelSource, ...]
    max_pixels: int
    memory: int | None = None


def served_models(models: Sequence[str], every: bool, options: LoadOptions, memory: str | None) -> Served:
    """Return what to serve: `models` as the command line names them, and all pulled ones if `every`.

    One model alone gets the whole of `memory`, or no limit without it. Several share it, or else what is free now.
    Raises MemoryBudgetError for a model that does not fit.
    """
    named = [_named(text) for text in models]
    if every:
        from pocketvlm.files.locate import pulled_models

        pulled = pulled_models()
        if not pulled and not named:
            raise RequestError("no model was pulled; `pocketvlm pull` gets one", "--all")
        given = {text for _, text in named}
        named += [(None, name) for name in pulled if name not in given]
    if len(named) <= 1:
        name, text = named[0] if named else (None, None)
        return _single(name, text, options, memory)
    if options.name is not None:
        raise RequestError("is for one model; name several by --model NAME=PATH", "--alias")
    if options.mmproj is not None:
        raise RequestError("is for one model; for several use --model MODEL.gguf+MMPROJ.gguf", "--mmproj")
    if options.calibration is not None:
        raise RequestError("is for one model, the one that it was made with; serve that alone", "--calibration")
    return _several(named, options, memory)


def _named(text: str) -> tuple[str | None, str]:
    """Return the name, if one is given, and the rest of `NAME=PATH`. What exists as it is has no name."""
    match = _NAMED.fullmatch(text)
    if match is None or exists(text):
        return None, text
    return match[1], match[2]


def _with_projector(text: str | None, options: LoadOptions) -> tuple[str | None, LoadOptions]:
    """Take `MODEL.gguf+MMPROJ.gguf` apart."""
    match = _PAIR.fullmatch(text or "")
    if match is None or exists(match[0]):
        return text, options
    return match[1], replace(options, mmproj=match[2])


def _single(name: str | None, text: str | None, options: LoadOptions, memory: str | None) -> Served:
    if name is not None:
        if options.name is not None:
            raise RequestError("cannot be combined with --model NAME=PATH", "--alias")
        options = replace(options, name=name)
    text, options = _with_projector(text, options)
    target, options = load_arguments(text, options, memory=memory)
    return Served((_source(target, options, 0),), options.max_pixels)


def _several(named: Sequence[tuple[str | None, str]], options: LoadOptions, memory: str | None) -> Served:
    from pocketvlm.plan.budget import available, read_size, share

    targets = []
    for name, text in named:
        path, own = _with_projector(text, replace(options, name=name))
        targets.append(load_arguments(path, own))
    sources = [_source(target, own, 0) for target, own in targets]  # before what takes time
    names = [source.facts.name for source in sources]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"two models are called {quoted(repeated)}; name one by --model NAME=PATH", "--model")
    budget = read_size(memory) if memory is not None else available()
    if budget is None:
        typer.echo("memory: not known here, so one model is loaded at a time; --memory allows more", err=True)
        return Served(tuple(sources), options.max_pixels, 0)
    with waiting("measuring, once"):
        shares, engines = share(targets, budget)
    sources = [_source(target, one.options, one.engine) for (target, _), one in zip(targets, shares, strict=True)]
    for source, one in zip(sources, shares, strict=True):
        name, context = shortened(source.facts.name), source.facts.context_size
        typer.echo(f"memory: {name} about {one.engine / 1e6:,.0f} MB with a context of {context}", err=True)
    typer.echo(f"memory: all models together up to {engines / 1e6:,.0f} of {budget / 1e6:,.0f} MB", err=True)
    return Served(tuple(sources), min(one.options.max_pixels for one in shares), engines)


def _source(target: str | None, options: LoadOptions, memory: int) -> ModelSource:
    from pocketvlm.chat.vlm import VLM
    from pocketvlm.files.locate import locate
    from pocketvlm.server.model_facts import read_facts
    from pocketvlm.server.served_model import ModelSource

    def find() -> Located:
        return locate(target, model=options.model, mmproj=options.mmproj, verify=False)

    compared = None

    def load() -> VLM:
        """Compare a bundle with its hashes, which takes seconds, only if its files have changed since the last time."""
        nonlocal compared
        files = _state_of(find())
        vlm = VLM.load(target, replace(options, verify=options.verify and files != compared))
        compared = files
        return vlm

    facts = read_facts(
        find(),
        name=options.name,
        requested_context=options.context_size,
        max_image_tokens=options.max_image_tokens,
        vision_choice=options.vision,
    )
    return ModelSource(facts, load, memory)


def _state_of(files: Located) -> list[object]:
    """Return what changes when a file changes. A file that is missing is an error of loading."""
    from pocketvlm.files.gguf_pieces import piece_files

    state: list[object] = [files.fingerprint]
    for path in (*piece_files(files.model), files.mmproj, files.onnx):
        with suppress(OSError):
            state.append((path, path.stat().st_size, path.stat().st_mtime_ns) if path else None)
    return state
