"""`pocketvlm doctor`: what this machine has, and what would be used and why."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import typer
from rich.console import Console
from rich.table import Table

from pocketvlm import __version__, devices
from pocketvlm.errors import PocketVLMError
from pocketvlm.native import library
from pocketvlm.native.library import WANTED

out = Console(highlight=False)
_PACKAGES = ("numpy", "pillow", "onnxruntime", "gguf", "pydantic", "jinja2")
_EXTRAS = {
    "convert": ("safetensors", "onnx", "tokenizers"),
    "server": ("fastapi", "uvicorn"),
    "heif": ("pillow_heif",),
}


def doctor() -> None:
    """Check devices, library versions and CPU features, and say what would be used and why."""
    from pocketvlm.locate import iota

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    table.add_row("pocketvlm", f"{__version__} ({python})")
    table.add_row("processor", devices.processor())
    threads = devices.physical_cores()
    table.add_row(
        "threads", f"{threads}: the physical cores of the {devices.allowed_cpus()} CPUs that this process may use"
    )
    memory = devices.memory()
    if memory:
        table.add_row("memory", f"{memory[0] / 1e9:.1f} GB, {memory[1] / 1e9:.1f} GB available")
    problem = _native_rows(table)
    table.add_row("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    for extra, names in _EXTRAS.items():
        lacking = [name for name in names if find_spec(name) is None]
        state = f'lacks {", ".join(lacking)}: pip install "pocketvlm\\[{extra}]"' if lacking else "installed"
        table.add_row(f"extra {extra}", state)
    try:
        table.add_row("model in the box", str(iota()))
    except PocketVLMError as error:
        table.add_row("model in the box", str(error))
    out.print(table)
    if problem:
        typer.secho(f"error: {problem}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def _native_rows(table: Table) -> PocketVLMError | None:
    """Rows about llama.cpp; what is wrong with it, if anything."""
    table.add_row("llama-cpp-python", f"{library.version()} (tested with {WANTED})")
    try:
        features = library.features()
    except PocketVLMError as error:
        return error
    table.add_row("llama.cpp features", features)
    if library.offloads():
        table.add_row("device", "GPU: this build of llama.cpp can offload, and all layers go there")
    else:
        table.add_row("device", "CPU: this build of llama.cpp has no GPU support")
    table.add_row("vision encoder", "libmtmd, with the bundle's mmproj")
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
