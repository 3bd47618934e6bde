"""`pocketvlm doctor`: what this machine has, and what pocketvlm would use and why."""

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
from pocketvlm.engine.loading import choose_layout
from pocketvlm.errors import PocketVLMError
from pocketvlm.native import library
from pocketvlm.native.accelerator import VARIABLE
from pocketvlm.native.build import GPU_BUILDS
from pocketvlm.native.build import version as version_of_llama
from pocketvlm.native.library import WANTED
from pocketvlm.system import machine
from pocketvlm.system.cgroup import cpu_quota
from pocketvlm.vision import encoder_speeds, onnx
from pocketvlm.vision.providers import devices_for

out = Console(highlight=False)
_PACKAGES = ("numpy", "pillow", "gguf", "pydantic", "jinja2")
_EXTRAS = {
    "convert": ("safetensors", "onnx", "tokenizers", "filelock"),
    "server": ("starlette", "uvicorn", "prometheus_client"),
    "hub": ("huggingface_hub", "filelock"),
    "heif": ("pillow_heif",),
    "ray": ("ray",),
}


def doctor(
    forget: Annotated[bool, typer.Option("--forget", help="Forget the measurements of this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only machine and devices, as JSON.")] = False,
) -> None:
    """Check devices, library versions and CPU features, and show what would be used and why."""
    from pocketvlm.engine.loading import trial
    from pocketvlm.files.locate import iota
    from pocketvlm.plan import probe_cache

    if forget:
        caches = (encoder_speeds.CACHE, choose_layout.CACHE, probe_cache.CACHE, trial.CACHE)
        removed = [str(cache.path) for cache in caches if cache.remove()]
        out.print(f"removed: {', '.join(removed)}" if removed else "there was nothing to remove")
        return
    if as_json:
        print(json.dumps(_machine(), indent=1))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    table.add_row("pocketvlm", f"{__version__} ({python})")
    table.add_row("processor", machine.processor())
    threads, cpus = machine.physical_cores(), machine.allowed_cpus()
    quota = cpu_quota()
    limit = "" if quota is None else f", within a quota of {quota:g}"
    table.add_row("threads", f"{threads}: the physical cores of the {cpus} CPUs that this process may use{limit}")
    memory = machine.memory()
    if memory:
        table.add_row("memory", f"{memory[0] / 1e9:.1f} GB, {memory[1] / 1e9:.1f} GB available")
    problem = _native_rows(table)
    table.add_row("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if find_spec(name) is None]
        state = f'{", ".join(missing)} missing: pip install "pocketvlm\\[{extra}]"' if missing else "installed"
        table.add_row(f"extra {extra}", state)
    try:
        table.add_row("model in the box", str(iota()))
    except PocketVLMError as error:
        table.add_row("model in the box", str(error))
    out.print(table)
    if problem:
        typer.secho(f"error: {problem}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def _machine() -> dict[str, Any]:
    """Return what decides on which device a model is placed."""
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
    """Add rows about llama.cpp. Return what is wrong with it, if anything."""
    table.add_row("llama-cpp-python", f"{version_of_llama()} (tested with {WANTED})")
    try:
        build = library.build()
        place = f"{build.name}, in {build.folder}" if build.folder else "its own"
        table.add_row("native library", f"{place}: {build.why}")
        if not build.stamped:
            table.add_row("", "it has no stamp, so it may not match llama-cpp-python")
        table.add_row("features", library.features())
        devices = library.devices()
        accelerator = library.accelerator()
    except PocketVLMError as error:
        return error
    for number, device in enumerate(devices):
        size = f", {device.total / 1e9:.1f} GB, {device.free / 1e9:.1f} GB free" if device.total else ""
        table.add_row("" if number else "native devices", f"{device.name}: {device.description}{size}")
    if library.offloads():
        table.add_row("device", "GPU: this build of llama.cpp offloads as much as the GPU's free memory holds")
    elif build.name in GPU_BUILDS:
        table.add_row("device", f"CPU: the build {build.name} sees no device of its kind, or no driver for one")
    else:
        table.add_row("device", "CPU: this build of llama.cpp has no GPU support")
    state = f"{accelerator.kernel}: {accelerator.why}; {VARIABLE} can choose another, or off"
    table.add_row("accelerator", state if accelerator.kernel else f"none: {accelerator.why}")
    _layout_rows(table)
    return _onnx_rows(table)


def _layout_rows(table: Table) -> None:
    """Add rows about the layouts of weights that were measured on this machine."""
    for number, entry in enumerate(choose_layout.recall_all()):
        times = "; ".join(
            f"{name} {prompt:.3g} and {answer:.3g} ms" for name, (prompt, answer) in entry["milliseconds"].items()
        )
        text = f"{entry['file']}: {entry['layout']}"
        text += f" (a few layers, tokens of prompts and answers: {times})" if times else ""
        table.add_row("" if number else "layout of weights", text)


def _onnx_rows(table: Table) -> PocketVLMError | None:
    """Add rows about vision encoders: where onnxruntime can run, and what was measured."""
    try:
        offered = devices_for("auto", onnx.runtime().get_available_providers())
    except PocketVLMError as error:
        return error
    table.add_row("onnxruntime", f"{onnx.version()}, runs on {', '.join(offered)}")
    table.add_row("vision encoder", "the only one that a bundle has, or else the one that was measured to be faster")
    measured = encoder_speeds.recall_all()
    if not measured:
        table.add_row("measured", "nothing yet: the encoders of a bundle are measured when it is first loaded")
    for device, speeds in measured.items():
        table.add_row("measured on", device)
        for speed in sorted(speeds.values(), key=lambda speed: speed.seconds):
            table.add_row("", f"{speed.seconds:.4g} s per tile: {speed.name}, threads {speed.threads}")
    if measured:
        table.add_row("", f"remembered in {encoder_speeds.CACHE.path}; --forget removes it")
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
