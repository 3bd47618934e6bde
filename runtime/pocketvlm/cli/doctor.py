"""`pocketvlm doctor`: what this machine has, and what would be used and why."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pocketvlm import __version__
from pocketvlm.errors import PocketVLMError
from pocketvlm.native import library
from pocketvlm.native.build import GPU_BUILDS
from pocketvlm.native.build import version as version_of_llama
from pocketvlm.native.library import WANTED
from pocketvlm.system import machine
from pocketvlm.vision import encoder_speeds, onnx
from pocketvlm.vision.providers import devices_for

out = Console(highlight=False)
_PACKAGES = ("numpy", "pillow", "gguf", "pydantic", "jinja2")
_EXTRAS = {
    "convert": ("safetensors", "onnx", "tokenizers"),
    "server": ("starlette", "uvicorn", "prometheus_client"),
    "hub": ("huggingface_hub", "filelock"),
    "heif": ("pillow_heif",),
    "ray": ("ray",),
}


def doctor(
    forget: Annotated[bool, typer.Option("--forget", help="Forget what was measured here.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine and devices alone, as JSON.")] = False,
) -> None:
    """Check devices, library versions and CPU features, and say what would be used and why."""
    from pocketvlm.files.locate import iota
    from pocketvlm.plan import probe_cache

    if forget:
        forgotten = [str(cache.path) for cache in (encoder_speeds.CACHE, probe_cache.CACHE) if cache.remove()]
        out.print(f"forgotten: {', '.join(forgotten)}" if forgotten else "nothing was remembered")
        return
    if as_json:
        print(json.dumps(_recorded(), indent=1))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    table.add_row("pocketvlm", f"{__version__} ({python})")
    table.add_row("processor", machine.processor())
    threads = machine.physical_cores()
    table.add_row(
        "threads", f"{threads}: the physical cores of the {machine.allowed_cpus()} CPUs that this process may use"
    )
    memory = machine.memory()
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


def _recorded() -> dict[str, Any]:
    """What decides where a model goes, as this machine has it now."""
    memory = machine.memory()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": machine.processor(),
        "library": library.build().label,
        "host_total": memory[0] if memory else None,
        "host_free": memory[1] if memory else None,
        "devices": [asdict(device) for device in library.devices()],
    }


def _native_rows(table: Table) -> PocketVLMError | None:
    """Rows about llama.cpp; what is wrong with it, if anything."""
    table.add_row("llama-cpp-python", f"{version_of_llama()} (tested with {WANTED})")
    try:
        build = library.build()
        place = f"{build.name}, in {build.folder}" if build.folder else "its own"
        table.add_row("native library", f"{place}: {build.why}")
        if not build.stamped:
            table.add_row("", "it has no stamp, so whether it fits is not known")
        table.add_row("features", library.features())
        machine = library.devices()
    except PocketVLMError as error:
        return error
    for number, device in enumerate(machine):
        size = f", {device.total / 1e9:.1f} GB, {device.free / 1e9:.1f} GB free" if device.total else ""
        table.add_row("" if number else "native devices", f"{device.name}: {device.description}{size}")
    if library.offloads():
        table.add_row("device", "GPU: this build of llama.cpp can offload, as much as its free memory holds")
    elif build.name in GPU_BUILDS:
        table.add_row("device", f"CPU: the build {build.name} found no device of its own, or no driver for one")
    else:
        table.add_row("device", "CPU: this build of llama.cpp has no GPU support")
    return _onnx_rows(table)


def _onnx_rows(table: Table) -> PocketVLMError | None:
    """Rows about vision encoders: where onnxruntime can run, and what was measured here."""
    try:
        offered = devices_for("auto", onnx.runtime().get_available_providers())
    except PocketVLMError as error:
        return error
    table.add_row("onnxruntime", f"{onnx.version()}, runs on {', '.join(offered)}")
    table.add_row("vision encoder", "the only one that a bundle has, else the one that measures fastest here")
    measured = encoder_speeds.recall_all()
    if not measured:
        table.add_row("measured", "nothing yet: a bundle with two encoders is measured when it is first loaded")
    for device, found in measured.items():
        table.add_row("measured on", device)
        for speed in sorted(found.values(), key=lambda speed: speed.seconds):
            table.add_row("", f"{speed.seconds:.4g} s a tile: {speed.name}, threads {speed.threads}")
    if measured:
        table.add_row("", f"remembered in {encoder_speeds.CACHE.path}; --forget clears it")
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
