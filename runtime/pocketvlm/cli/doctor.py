"""`pocketvlm doctor`: what this machine has, and what pocketvlm would use and why."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

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
from pocketvlm.system.printable_console import PrintableConsole
from pocketvlm.system.terminal import Row, echo, print_rows, whole
from pocketvlm.vision import encoder_speeds, onnx
from pocketvlm.vision.providers import devices_for

_PACKAGES = ("numpy", "pillow", "gguf", "pydantic", "jinja2")


def doctor(
    forget: Annotated[bool, typer.Option("--forget", help="Forget the measurements of this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON instead of a table.")] = False,
) -> None:
    """Check devices, library versions and CPU features, and show what would be used and why."""
    from pocketvlm.engine.loading import trial
    from pocketvlm.plan import probe_cache

    if forget:
        caches = (encoder_speeds.CACHE, choose_layout.CACHE, probe_cache.CACHE, trial.CACHE)
        removed = [str(cache.path) for cache in caches if cache.remove()]
        typer.echo(f"removed: {', '.join(removed)}" if removed else "there was nothing to remove")
        return
    report = _report()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        print_rows(PrintableConsole(highlight=False, markup=False), _rows(report))
    if report["problem"]:
        echo(f"error: {report['problem']}", "red", err=True)
        sys.exit(1)


def _report() -> dict[str, Any]:
    """Return all facts for JSON, of which the table is made. The first ones decide where a model is placed."""
    memory, native = machine.memory(), _native()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": machine.processor(),
        "library": native.pop("label", None),
        "host_total": memory[0] if memory else None,
        "host_free": memory[1] if memory else None,
        "devices": native.pop("devices", []),
        "pocketvlm": __version__,
        "python": platform.python_version(),
        "threads": machine.physical_cores(),
        "allowed_cpus": machine.allowed_cpus(),
        "cpu_quota": cpu_quota(),
        "llama_cpp_python": {"version": version_of_llama(), "tested": str(WANTED)},
        **native,
        "weight_layouts": [dict(entry) for entry in choose_layout.recall_all()],
        "packages": {name: _version(name) for name in _PACKAGES},
        **_files(),
    }


def _native() -> dict[str, Any]:
    """Return what the native libraries report, and as `problem` what is wrong with them."""
    report: dict[str, Any] = {"problem": None}
    try:
        build = library.build()
        report["label"] = build.label
        folder = str(build.folder) if build.folder else None
        report["native_library"] = {"name": build.name, "folder": folder, "why": build.why, "stamped": build.stamped}
        report["features"] = library.features()
        report["cpu_code"] = library.cpu_code()
        devices = library.devices()
        report["devices"] = [asdict(device) for device in devices]
        if library.offloads():
            report["device"] = "GPU: this build of llama.cpp offloads as much as the GPU's free memory holds"
        elif build.name in GPU_BUILDS:
            report["device"] = f"CPU: the build {build.name} sees no device of its kind, or no driver for one"
        else:
            report["device"] = "CPU: this build of llama.cpp has no GPU support"
        accelerator = library.accelerator()
        report["accelerator"] = {"kernel": accelerator.kernel, "why": accelerator.why}
        offered = devices_for("auto", onnx.runtime().get_available_providers())
        report["onnxruntime"] = {"version": onnx.version(), "devices": list(offered)}
        report["encoders"] = {
            device: [speed.model_dump() for speed in sorted(speeds.values(), key=lambda speed: speed.seconds)]
            for device, speeds in encoder_speeds.recall_all().items()
        }
    except PocketVLMError as error:
        report["problem"] = str(error)
    return report


def _files() -> dict[str, Any]:
    from pocketvlm.files.locate import iota, models_folder
    from pocketvlm.system.extras import missing_packages

    try:
        path, problem = str(iota()), None
    except PocketVLMError as error:
        path, problem = None, str(error)
    return {
        "missing_packages": missing_packages(),
        "iota": path,
        "iota_problem": problem,
        "models_folder": str(models_folder()),
        "encoders_file": str(encoder_speeds.CACHE.path),
    }


def _rows(report: dict[str, Any]) -> Iterator[Row]:
    yield "pocketvlm", f"{report['pocketvlm']} (Python {report['python']}, {report['system']})"
    yield "processor", report["processor"]
    quota = "" if report["cpu_quota"] is None else f", within a quota of {report['cpu_quota']:g}"
    cpus = report["allowed_cpus"]
    yield "threads", f"{report['threads']}: the physical cores of the {cpus} CPUs that this process may use{quota}"
    if report["host_total"]:
        yield "memory", f"{report['host_total'] / 1e9:.1f} GB, {report['host_free'] / 1e9:.1f} GB available"
    llama = report["llama_cpp_python"]
    yield "llama-cpp-python", f"{llama['version']} (tested with {llama['tested']})"
    yield from _native_rows(report)
    yield "packages", ", ".join(f"{name} {number}" for name, number in report["packages"].items())
    for extra, missing in report["missing_packages"].items():
        yield f"extra {extra}", f'{", ".join(missing)} missing: pip install ".[{extra}]"' if missing else "installed"
    if any(report["missing_packages"].values()):
        yield "", "extras are installed from the folder of pocketvlm's source"
    yield "model in the box", whole(report["iota"] or report["iota_problem"])
    yield "pulled models", f"in {whole(report['models_folder'])}"


def _native_rows(report: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows about native libraries, up to the one that has a problem."""
    if build := report.get("native_library"):
        place = f"{build['name']}, in {whole(build['folder'])}" if build["folder"] else "its own"
        yield "native library", f"{place}: {build['why']}"
        if not build["stamped"]:
            yield "", "it has no stamp, so it may not match llama-cpp-python"
    if features := report.get("features"):
        yield "features", features
    if generation := report.get("cpu_code"):
        yield "code for the CPU", f"{generation}: the best of the build's that this CPU runs"
    for number, device in enumerate(report["devices"]):
        size = f", {device['total'] / 1e9:.1f} GB, {device['free'] / 1e9:.1f} GB free" if device["total"] else ""
        yield "" if number else "native devices", f"{device['name']}: {device['description']}{size}"
    if device := report.get("device"):
        yield "device", device
    if accelerator := report.get("accelerator"):
        kernel, why = accelerator["kernel"], accelerator["why"]
        chosen = f"{kernel}: {why}; {VARIABLE} can choose another, or off"
        yield "accelerator", chosen if kernel else f"none: {why}"
    for number, entry in enumerate(report["weight_layouts"]):
        times = "; ".join(
            f"{name} {prompt:.3g} and {answer:.3g} ms" for name, (prompt, answer) in entry["milliseconds"].items()
        )
        measured = f" (a few layers, tokens of prompts and answers: {times})" if times else ""
        yield "" if number else "layout of weights", f"{entry['file']}: {entry['layout']}{measured}"
    if "onnxruntime" in report:
        yield from _encoder_rows(report)


def _encoder_rows(report: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows about vision encoders: where onnxruntime can run, and what was measured."""
    onnxruntime = report["onnxruntime"]
    yield "onnxruntime", f"{onnxruntime['version']}, runs on {', '.join(onnxruntime['devices'])}"
    yield "vision encoder", "the only one that a bundle has, or else the one that was measured to be faster"
    if not report["encoders"]:
        yield "measured", "nothing yet: the encoders of a bundle are measured when it is first loaded"
    for device, speeds in report["encoders"].items():
        yield "measured on", device
        for speed in speeds:
            yield "", f"{speed['seconds']:.4g} s per tile: {speed['name']}, threads {speed['threads']}"
    if report["encoders"]:
        yield "", f"remembered in {whole(report['encoders_file'])}; --forget removes it"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
