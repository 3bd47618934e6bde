"""`pocketvlm models`: list the catalogue, with the disk space and memory that its models need on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketvlm_converters.cli.tables import Column, fitted_table, rounded_size

if TYPE_CHECKING:
    from pocketvlm.system.terminal import Row
    from pocketvlm_converters.catalog.entry import Entry, Types
    from pocketvlm_converters.catalog.estimates import Figures

_TYPES = ("Q4_K_M", "Q6_K", "Q8_0", "BF16")  # listed for one model, besides the recommended type
_LEAST = 0.5  # bytes of a weight, with types of 4 bits and more
_DOUBLING = 8  # months in which a model of half the size answers as well; a rule of thumb, for the order of a list


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="ID", help="A model of the catalogue; by default all are listed.")
    ] = None,
    fits: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="List only models that need at most this memory, e.g. 4G, or 'free' for what is free now, best first.",
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="List the models that were pulled, with their size and last use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON instead of a table.")] = False,
) -> None:
    """List models that pocketvlm converts, with their download, disk space, memory and tokens per picture."""
    if local:
        from pocketvlm_converters.cli.local_models import show_local

        show_local(model, fits, as_json=as_json)
        return
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    import json

    from pocketvlm.errors import RequestError
    from pocketvlm_converters.catalog.entry import entries, get_entry

    if model is None:
        budget = _budget(fits) if fits is not None else None
        listed_entries = entries() if budget is None else _may_fit(entries(), budget)
        listed = list(zip(listed_entries, _figures([(entry, entry.types) for entry in listed_entries]), strict=True))
        listed.sort(key=lambda row: row[1].parameters)
        if budget is not None:
            listed = _best_first(listed, budget)
        if as_json:
            report = [_as_json(entry, figures) for entry, figures in listed]
            typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        else:
            _show_all(listed, budget)
        return
    if fits is not None:
        raise RequestError("it lists models; leave out the id", "--fits")
    entry = get_entry(model)
    types = dict.fromkeys((entry.types.quantize, *_TYPES))
    rows = _figures([(entry, entry.types.model_copy(update={"quantize": quantize})) for quantize in types])
    by_type = dict(zip(types, rows, strict=True))
    if as_json:
        sizes = {name: _sizes(figures) for name, figures in by_type.items()}
        typer.echo(json.dumps(_as_json(entry, rows[0]) | {"types": sizes}, indent=2, ensure_ascii=False))
    else:
        _show_one(entry, by_type)


def _budget(fits: str) -> int:
    """Return the bytes that `--fits` allows. Raises RequestError."""
    from pocketvlm.errors import RequestError
    from pocketvlm.plan.budget import available, read_size

    if fits.strip().lower() != "free":
        return read_size(fits, "--fits")
    free = available()
    if free is None:
        raise RequestError("the free memory is not known here; name a size, e.g. 4G", "--fits")
    return free


def _may_fit(all_entries: Sequence[Entry], budget: int) -> list[Entry]:
    """Return the models whose weights alone do not exceed the budget, at least the smallest one.

    The figures of the others need not be computed.
    """
    from pocketvlm_converters.catalog.meta_bundle import model_of

    parameters = [model_of(entry).parameters for entry in all_entries]
    most = max(min(parameters), int(budget / _LEAST))
    return [entry for entry, count in zip(all_entries, parameters, strict=True) if count <= most]


def _best_first(listed: Sequence[tuple[Entry, Figures]], budget: int) -> list[tuple[Entry, Figures]]:
    """Return the models that fit, best first: a model counts as twice as large for every eight months it is newer.

    Raises MemoryBudgetError if none fits.
    """
    from math import log2

    from pocketvlm.errors import MemoryBudgetError

    fitting = [row for row in listed if _memory(row[1]) <= budget]
    if not fitting:
        entry, figures = min(listed, key=lambda row: _memory(row[1]))
        needed = _memory(figures)
        message = f"no model fits in {rounded_size(budget)}; the smallest, {entry.id}, needs {rounded_size(needed)}"
        raise MemoryBudgetError(message, "--fits", needed)
    return sorted(fitting, key=lambda row: log2(row[1].parameters) + row[0].age / _DOUBLING, reverse=True)


def _memory(figures: Figures) -> int:
    """Return the bytes that a model needs, with the vision encoder that needs more."""
    return max(figures.memory.values())


def _figures(wanted: Sequence[tuple[Entry, Types]]) -> list[Figures]:
    """Return the figures, with a progress bar for those that are not cached."""
    from pocketvlm_converters.catalog.estimates import all_figures
    from pocketvlm_converters.cli.progress import bars

    with bars() as progress:
        return all_figures(wanted, progress)


def _as_json(entry: Entry, figures: Figures) -> dict[str, Any]:
    return {
        "id": entry.id,
        "title": entry.title,
        "repository": entry.repository,
        "gguf": entry.gguf,
        "family": entry.family,
        "good_for": entry.good_for,
        "released": entry.released,
        "license": entry.license,
        "gated": entry.gated,
        "pulled": _pulled(entry),
        "parameters": figures.parameters,
        "download_bytes": figures.download,
        "recommended": entry.types.model_dump(),
        **_sizes(figures),
        "context_size": figures.context,
        "pictures": entry.pictures,
        "picture_tokens_640x480": figures.picture_tokens,
        "picture_tiles_640x480": figures.picture_tiles,
    }


def _pulled(entry: Entry) -> str | None:
    """Return the folder of the model, if it was pulled."""
    from pocketvlm.files.bundle import is_bundle
    from pocketvlm_converters.pull.pull import pulled_folder

    folder = pulled_folder(entry.id)
    return str(folder) if is_bundle(folder) else None


def _sizes(figures: Figures) -> dict[str, Any]:
    return {"bundle_bytes": figures.bundle, "memory_bytes": figures.memory}


def _show_all(listed: list[tuple[Entry, Figures]], budget: int | None) -> None:
    from pocketvlm.system.printable_console import PrintableConsole

    console = PrintableConsole(highlight=False, markup=False)
    entries = [entry for entry, _ in listed]
    all_figures = [figures for _, figures in listed]
    columns: tuple[Column, ...] = (
        Column("id", [f"{entry.id}{' +' if _pulled(entry) else ''}" for entry in entries], 0, right=False),
        Column("family", [entry.family for entry in entries], 6, right=False),
        Column(
            "licence", [f"{entry.license or '-'}{' *' if entry.gated else ''}" for entry in entries], 4, right=False
        ),
        Column("weights", [_count(figures.parameters) for figures in all_figures], 5),
        Column("download", [rounded_size(figures.download) for figures in all_figures], 2),
        Column("bundle", [rounded_size(figures.bundle) for figures in all_figures], 3),
        Column("memory", [rounded_size(_memory(figures)) for figures in all_figures], 1),
        Column("picture", [f"{figures.picture_tokens}" for figures in all_figures], 3),
    )
    notes = [
        "memory: with the recommended types, a context of 8192 tokens and one picture",
        "picture: tokens of a picture of 640x480 with --detail auto",
        "*: you must accept the licence on the hub first",
        "+: pulled; use its id with chat --model",
        "details, with the family and other types: pocketvlm models ID",
    ]
    if budget is not None:  # what a model is for matters more than what it downloads
        columns = (columns[0], columns[6], Column("good for", [entry.good_for for entry in entries], 2, right=False))
        notes[1:3] = [f"best first: larger and newer models that fit in {rounded_size(budget)}"]
    console.print(fitted_table(columns, console.width))
    console.print("\n" + "\n".join(notes), style="dim")


def _show_one(entry: Entry, by_type: dict[str, Figures]) -> None:
    from pocketvlm.system.printable_console import PrintableConsole
    from pocketvlm.system.terminal import print_rows

    recommended = by_type[entry.types.quantize]
    console = PrintableConsole(highlight=False, markup=False)
    print_rows(console, _facts(entry, recommended))
    sizes = [Column("type", list(by_type), 0, right=False)]
    sizes.append(Column("bundle", [rounded_size(figures.bundle) for figures in by_type.values()], 1))
    for kind in recommended.memory:
        memory = [rounded_size(figures.memory[kind]) for figures in by_type.values()]
        sizes.append(Column(f"memory,\n{kind}", memory, 2))
    console.print()
    console.print(fitted_table(sizes, console.width))
    note = f"memory: with either vision encoder, a context of {recommended.context} tokens and one picture"
    console.print(f"\n{note}", style="dim")


def _facts(entry: Entry, recommended: Figures) -> Iterator[Row]:
    from pocketvlm.system.terminal import whole

    gated = "; accept it on the hub first" if entry.gated else ""
    yield "model", f"{entry.title}, {_count(recommended.parameters)} parameters, family {entry.family}"
    yield "good for", entry.good_for
    yield "released", entry.released
    yield "licence", f"{entry.license or 'see its model card'}{gated}"
    download = rounded_size(recommended.download)
    yield "checkpoint", f"{entry.repository}, {download}" if entry.repository else "comes with pocketvlm"
    if pulled := _pulled(entry):
        yield "pulled", whole(pulled)
    if entry.gguf:
        yield "ready GGUF", entry.gguf
    types = entry.types
    yield "recommended", f"--quantize {types.quantize} --mmproj {types.mmproj} --onnx {types.onnx}"
    tiles = f"{recommended.picture_tiles} tile{'s' if recommended.picture_tiles > 1 else ''}"
    yield "pictures", entry.pictures
    yield "", f"640x480 with --detail auto: {recommended.picture_tokens} tokens, {tiles}"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.0f} M"
