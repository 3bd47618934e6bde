"""Hooks of mkdocs.yml: pages that lie outside docs/, links between both, and references that the code itself writes.

The reference of the commands comes from the command line, so it cannot differ from `--help`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
# Page of the site -> file of the repository.
OUTSIDE = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "iota.md": "models/iota/README.md",
    "reporting.md": "SECURITY.md",
}
# Path of the repository -> page that shows it.
SHOWN_BY = {path: page for page, path in OUTSIDE.items()} | {"examples": "examples.md"}
_LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<path>[^()\s#:]+)(?P<anchor>#[^()\s]*)?\)")
_IMAGE = re.compile(r'(?<=<img src=")docs/')
_FENCE = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2 *$", re.DOTALL | re.MULTILINE)


# ---- called by mkdocs


def on_config(config: Any) -> Any:
    """Add every design decision to the navigation."""
    [project] = [section["Project"] for section in config.nav if "Project" in section]
    [decisions] = [part["Design decisions"] for part in project if isinstance(part, dict)]
    decisions += [f"design/{path.name}" for path in sorted((ROOT / "docs" / "design").glob("[0-9]*.md"))]
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page, path in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]  # which would list the page itself alone
    markdown = relink(markdown, page.file.src_uri)
    for marker, generate in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown


# ---- links


def relink(markdown: str, page: str) -> str:
    """Turn links between files of the repository into links between pages of the site.

    A link to a file that the site does not show becomes plain text.
    """
    folder = dirname(OUTSIDE.get(page, f"docs/{page}"))

    def replace(link: re.Match[str]) -> str:
        path = normpath(join(folder, link["path"]))
        target = SHOWN_BY.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is not None:
            return f"{link['text']}({relpath(target, dirname(page) or '.')}{link['anchor'] or ''})"
        return link["text"][1:-1] if (ROOT / path).exists() else link[0]

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return _IMAGE.sub("", "".join([*parts, _LINK.sub(replace, markdown[end:])]))


# ---- options of VLM.load


def load_options() -> str:
    """List the fields of LoadOptions, which adds them to its docstring when it is imported."""
    from pocketvlm import LoadOptions

    fields = re.findall(r"^ +(\w+) = (.+?): ([A-Z].+)$", LoadOptions.__doc__ or "", re.MULTILINE)
    return "\n\n".join(f"`{name}` = `{default}`\n:   {text}" for name, default, text in fields)


# ---- commands


def commands() -> dict[str, Any]:
    """Every command of `pocketvlm`, by name: click's own objects."""
    import typer

    from pocketvlm.cli.commands import app

    return dict(sorted(typer.main.get_group(app).import_all(None).items()))


def command_reference() -> str:
    return "\n\n".join("\n".join(_command(name, command)) for name, command in commands().items())


def _command(name: str, command: Any) -> Iterator[str]:
    shown = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [
        _name_of(parameter) if parameter.required else f"[{_name_of(parameter)}]"
        for parameter in shown
        if _is_argument(parameter)
    ]
    yield f"## {name}\n"
    yield f"{command.help.strip()}\n"
    yield f"```text\n{' '.join(['pocketvlm', name, '[OPTIONS]', *arguments])}\n```\n"
    for parameter in shown:
        yield from _parameter(parameter)


def _parameter(parameter: Any) -> Iterator[str]:
    if _is_argument(parameter):
        spelled = f"`{_name_of(parameter)}`"
    else:
        spelled = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        spelled += "" if parameter.is_flag else f" `{parameter.metavar or _value_of(parameter)}`"
    notes = [(parameter.help or "").strip()]
    if parameter.default is True:
        notes.append(f"Default: `{parameter.opts[0]}`.")
    elif parameter.default not in (None, False, ()):
        notes.append(f"Default: `{parameter.default}`.")
    if parameter.required:
        notes.append("Required.")
    if parameter.envvar:
        notes.append(f"Environment variable: `{parameter.envvar}`.")
    yield f"{spelled}\n:   {' '.join(filter(None, notes))}\n"


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name).strip("[]").upper()


def _value_of(option: Any) -> str:
    """The kind of value that an option takes, such as TEXT or PATH."""
    if hasattr(option, "type"):  # typer on top of click
        return str(option.type.name).upper()
    annotation = option.type_descriptor.annotation
    kind = (*get_args(annotation), annotation)[0].__name__
    return "TEXT" if kind == "str" else str(kind).upper()


# Comment on a page -> what replaces it.
GENERATED = {"<!-- commands -->": command_reference, "<!-- load options -->": load_options}
