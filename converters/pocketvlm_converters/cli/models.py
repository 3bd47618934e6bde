"""`pocketvlm models`: what the catalogue has, and what it would take here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pocketvlm_converters.catalog.entry import Entry, Types
    from pocketvlm_converters.catalog.estimates import Figures

_TYPES = ("Q4_K_M", "Q6_K", "Q8_0", "BF16")
_GAP = 2  # between two columns of a table


def models(
    model: Annotated[str | None, typer.Argument(metavar="[ID]", help="A model of the catalogue; all without.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Checkpoints that pocketvlm converts, what they take to download, on disk and in memory, and their pictures."""
    # Imported here: every `pocketvlm` command loads this module to learn the command's name.
    import json

    from pocketvlm_converters.catalog.entry import entries, get_entry

    if model is None:
        listed = entries()
        found = list(zip(listed, _figures([(entry, entry.types) for entry in listed]), strict=True))
        found.sort(key=lambda row: row[1].parameters)
        if as_json:
            typer.echo(json.dumps([_as_json(entry, figures) for entry, figures in found], indent=2, ensure_ascii=False))
        else:
            _show_all(found)
        return
    entry = get_entry(model)
    types = dict.fromkeys((entry.types.quantize, *_TYPES))
    rows = _figures([(entry, entry.types.model_copy(update={"quantize": quantize})) for quantize in types])
    if as_json:
        told = _as_json(entry, rows[0]) | {"types": {name: _sizes(row) for name, row in zip(types, rows, strict=True)}}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _show_one(entry, dict(zip(types, rows, strict=True)))


def _figures(wanted: Sequence[tuple[Entry, Types]]) -> list[Figures]:
    """A progress bar where much must be computed."""
    from pocketvlm_converters.catalog.estimates import all_figures
    from pocketvlm_converters.cli.progress import bars

    with bars() as show:
        return all_figures(wanted, show)


def _as_json(entry: Entry, found: Figures) -> dict[str, Any]:
    return {
        "id": entry.id,
        "title": entry.title,
        "repository": entry.repository,
        "gguf": entry.gguf,
        "family": entry.family,
        "license": entry.license,
        "gated": entry.gated,
        "pulled": _pulled(entry),
        "parameters": found.parameters,
        "download_bytes": found.download,
        "recommended": entry.types.model_dump(),
        **_sizes(found),
        "context_size": found.context,
        "pictures": entry.pictures,
        "picture_tokens_640x480": found.picture_tokens,
        "picture_tiles_640x480": found.picture_tiles,
    }


def _pulled(entry: Entry) -> str | None:
    from pocketvlm.files.bundle import is_bundle
    from pocketvlm_converters.pull.pull import place_of

    place = place_of(entry.id)
    return str(place) if is_bundle(place) else None


def _sizes(found: Figures) -> dict[str, Any]:
    return {"bundle_bytes": found.bundle, "memory_bytes": found.memory}


@dataclass(frozen=True)
class _Column:
    """Where a table is too wide, the column with the highest `rank` goes first."""

    title: str
    cells: Sequence[str]
    rank: int
    right: bool = True

    @property
    def width(self) -> int:
        return max(map(len, (*self.title.split("\n"), *self.cells)))


def _fitting(columns: Sequence[_Column], width: int) -> Table:
    """With as many columns as fit, and the first in any case; no cell is cut."""
    from rich.table import Table

    shown = list(columns)
    while len(shown) > 1 and sum(column.width for column in shown) + _GAP * (len(shown) - 1) > width:
        shown.remove(max(shown[1:], key=lambda column: column.rank))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP // 2), header_style="dim")
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


def _show_all(found: list[tuple[Entry, Figures]]) -> None:
    from rich.console import Console

    out = Console(highlight=False, markup=False)
    listed = [entry for entry, _ in found]
    figures = [one for _, one in found]
    columns = (
        _Column("id", [f"{entry.id}{' +' if _pulled(entry) else ''}" for entry in listed], 0, right=False),
        _Column("family", [entry.family for entry in listed], 6, right=False),
        _Column(
            "licence", [f"{entry.license or '-'}{' *' if entry.gated else ''}" for entry in listed], 4, right=False
        ),
        _Column("weights", [_count(one.parameters) for one in figures], 5),
        _Column("download", [_size(one.download) for one in figures], 2),
        _Column("bundle", [_size(one.bundle) for one in figures], 3),
        _Column("memory", [_size(max(one.memory.values())) for one in figures], 1),
        _Column("picture", [f"{one.picture_tokens}" for one in figures], 3),
    )
    out.print(_fitting(columns, out.width))
    notes = (
        "memory: with the recommended types, a context of 8192 tokens and one picture",
        "picture: tokens of 640x480 with --detail auto",
        "*: the licence must be accepted on the hub first",
        "+: pulled, chat --model takes its id",
        "more, as the family and other types: pocketvlm models ID",
    )
    out.print("\n" + "\n".join(notes), style="dim")


def _show_one(entry: Entry, found: dict[str, Figures]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = found[entry.types.quantize]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    gated = ", to be accepted on the hub first" if entry.gated else ""
    table.add_row("model", f"{entry.title}, {_count(first.parameters)} parameters, family {entry.family}")
    table.add_row("licence", f"{entry.license or 'see its card'}{gated}")
    table.add_row("checkpoint", f"{entry.repository}, {_size(first.download)}" if entry.repository else "in the box")
    if pulled := _pulled(entry):
        table.add_row("pulled", pulled)
    if entry.gguf:
        table.add_row("ready GGUF", entry.gguf)
    types = entry.types
    table.add_row("recommended", f"--quantize {types.quantize} --mmproj {types.mmproj} --onnx {types.onnx}")
    tiles = f"{first.picture_tiles} tile{'s' if first.picture_tiles > 1 else ''}"
    table.add_row("pictures", entry.pictures)
    table.add_row("", f"640x480 with --detail auto: {first.picture_tokens} tokens, {tiles}")
    out = Console(highlight=False, markup=False)
    out.print(table)
    sizes = [_Column("type", list(found), 0, right=False)]
    sizes.append(_Column("bundle", [_size(row.bundle) for row in found.values()], 1))
    for kind in first.memory:
        sizes.append(_Column(f"memory,\n{kind}", [_size(row.memory[kind]) for row in found.values()], 2))
    out.print()
    out.print(_fitting(sizes, out.width))
    out.print(f"\nmemory: with either vision encoder, a context of {first.context} and one picture", style="dim")


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.0f} M"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
