"""Imports point one way, families stay in their folders, files stay small. Also run by `make check`."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"pocketvlm": "runtime", "pocketvlm_converters": "converters", "pocketvlm_models": "models"}

# A unit is a module or folder; "" is the package itself, __init__.py. Imports point to lower lines only.
LEVELS = {
    "pocketvlm": (
        {"__main__"},
        {"cli"},
        {"server", "batch", "plan", "bench.picture"},
        {"", "vlm"},
        {"bench", "reading"},
        {"chat.async_vlm"},
        {"chat.vlm"},
        {"chat.choices", "chat.decision"},
        {"chat.prepare", "chat.completion", "chat.locate", "chat.sampling", "chat.session"},
        {"chat.load_options"},
        {"engine.process"},
        {"engine.in_process"},
        {"engine.loading"},
        {"engine.scheduling"},
        {"engine.kv_cache", "engine.background"},
        {"engine.interface", "regions"},
        {"engine.options", "structured"},
        {"engine.speculative", "engine.threads"},
        {"documents"},
        {"vision"},
        {"native", "templates", "pictures", "decisions"},
        {"messages", "files"},
        {"system"},
        {"errors"},
    ),
    "pocketvlm_converters": (
        {"cli"},
        {"pull"},
        {"convert", "dry_run", "catalog"},
        {"families", "quantization", "proof"},
        {"export_parts", "networks"},
        {"family", "gguf"},
        {"onnx", "tokenizer", "samples", "subprocess_task"},
        {"weights"},
        {"checkpoint"},
        {"atomic", "progress"},
        {""},
    ),
    "pocketvlm_models": ({""},),
}
LEVEL = {
    package: {unit: number for number, units in enumerate(levels) for unit in units}
    for package, levels in LEVELS.items()
}
# What the other packages may take from pocketvlm, and what one of their modules may take besides.
OUTSIDE = {
    "pocketvlm_converters": {"files", "native", "vision", "system", "errors"},
    "pocketvlm_models": {"files", "errors"},
}
EXTRA = {
    # Puts pictures before a model as a chat does.
    "pocketvlm_converters.samples.forward": {"messages", "pictures", "templates"},
    "pocketvlm_converters.proof.stages": {"templates"},  # counts the pictures that a template places
    "pocketvlm_converters.tokenizer.proof": {"templates"},  # compares what a chat does with a text
    "pocketvlm_converters.tokenizer.ends": {"templates"},  # reads how a template closes an answer
    "pocketvlm_converters.proof.verify": {""},
    # Predict memory as `pocketvlm plan` does, with its options.
    "pocketvlm_converters.catalog.estimates": {"plan", "chat"},
    "pocketvlm_converters.catalog.lookup": {"plan", "chat"},
    "pocketvlm_converters.cli.models": {"plan"},  # reads a budget as `pocketvlm plan` does
}
# The packages of ours that each may import.
OURS = {
    "pocketvlm": {"pocketvlm"},
    "pocketvlm_converters": {"pocketvlm", "pocketvlm_converters", "pocketvlm_models"},
    "pocketvlm_models": {"pocketvlm", "pocketvlm_models"},
}
# Modules that may be imported only below one place; None is nowhere.
RESERVED = {"llama_cpp": "pocketvlm.native", "iota": None} | dict.fromkeys(
    ("torch", "transformers"), "pocketvlm_converters.proof.reference"
)
# Of families that are here, without their numbers, and of some that are not.
HERE = {path.stem for name, root in SOURCES.items() for path in (ROOT / root / name).rglob("families/*.py")}
FAMILIES = "|".join({*(found[0] for name in HERE if (found := re.match("[a-z]+", name)))}) + (
    "|idefics|pixtral|ministral|mllama|minicpm|moondream|florence|phi[34]|molmo|cogvlm|kimi|glm4|deepseek"
)
LINES = 450


def modules(package: str) -> Iterator[tuple[str, Path]]:
    folder = ROOT / SOURCES[package]
    for path in sorted((folder / package).rglob("*.py")):
        yield ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"), path


def imports(name: str, source: str, is_package: bool = False) -> Iterator[str]:
    """Absolute names of all that a module imports: at any depth, for types only, or by import_module("...")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def unit_of(name: str) -> str:
    """`pocketvlm.engine.process.worker` -> engine.process; `pocketvlm` and `pocketvlm.VLM` -> the package itself."""
    package, *parts = name.split(".")
    known = LEVEL[package]
    return next((unit for n in (2, 1) if (unit := ".".join(parts[:n])) in known), "")


def import_faults(name: str, source: str, is_package: bool = False) -> list[str]:
    package = name.split(".")[0]
    faults = []
    for target in imports(name, source, is_package):
        root = target.split(".")[0]
        where = RESERVED.get(root, package)
        if where is None or not f"{name}.".startswith(f"{where}."):
            faults.append(f"{name} must not import {target}")
        elif root in SOURCES and root not in OURS[package]:
            faults.append(f"{name} must not import {target}: it is above")
        elif root in SOURCES:
            unit, own = unit_of(target), unit_of(name)
            if root == package:
                allowed = unit == own or LEVEL[root][own] < LEVEL[root][unit]
            else:
                allowed = root == "pocketvlm_models" or unit.split(".")[0] in OUTSIDE[package] | EXTRA.get(name, set())
            if not allowed:
                faults.append(f"{name} must not import {target}: imports point down")
    return faults


def family_faults(path: str, source: str) -> list[str]:
    if {"families", "networks"} & {*Path(path).parts}:  # networks are named as their papers name them
        return []
    # llama.cpp names ways to split a text, and projectors, after the family that had one first; others share it.
    source = re.sub(r'(\b(?:PreTokenizer|Projector)\(\s*|_SPLITS = )"[^"]*"', r"\1", source)
    found = re.finditer(FAMILIES, source, re.IGNORECASE)
    return [
        f"{path}:{source.count(chr(10), 0, hit.start()) + 1}: family name {hit[0]!r} outside families/" for hit in found
    ]


def text_faults(path: str, source: str) -> list[str]:
    hit = re.search(r"(?<![\w.])/" + r"work/|\.\./" + r"shared\b", source)
    return [f"{path}: mentions {hit[0]}, which exists on one machine only"] if hit else []


def report(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("package", SOURCES)
def test_every_module_has_a_level(package: str) -> None:
    missing = [name for name, path in modules(package) if path.stem != "__init__" and not unit_of(name)]
    assert missing == []


@pytest.mark.parametrize("package", SOURCES)
def test_imports_point_one_way(package: str) -> None:
    faults = []
    for name, path in modules(package):
        faults += import_faults(name, path.read_text("utf-8"), path.stem == "__init__")
    report(faults)


@pytest.mark.parametrize("package", ["pocketvlm", "pocketvlm_converters"])
def test_families_and_sizes(package: str) -> None:
    faults = []
    for _, path in modules(package):
        source, shown = path.read_text("utf-8"), str(path.relative_to(ROOT))
        faults += family_faults(shown, source)
        if (lines := source.count("\n")) > LINES:
            faults.append(f"{shown} has {lines} lines: split it by idea")
    report(faults)


def test_tracked_files_stand_alone() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    faults = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and b"\0" not in (data := (ROOT / name).read_bytes()):
            faults += text_faults(name, data.decode("utf-8", errors="replace"))
    report(faults)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pocketvlm.native.llama", "from pocketvlm.pictures.images import load"),
        ("pocketvlm.vision.select_encoder", "def f():\n    from ..engine import engine"),
        ("pocketvlm.messages", "from . import bundle"),
        ("pocketvlm.engine.interface", "from pocketvlm import VLM"),
        ("pocketvlm.engine.interface", "import llama_cpp.llama_cpp as native"),
        ("pocketvlm.chat.vlm", "import pocketvlm_converters"),
        ("pocketvlm.chat.vlm", "importlib.import_module('pocketvlm_models')"),
        ("pocketvlm_converters.gguf", "from pocketvlm.pictures.images import load"),
        ("pocketvlm_converters.gguf", "from pocketvlm import VLM"),
        ("pocketvlm_converters.checkpoint.folder", "if TYPE_CHECKING:\n    import torch"),
        ("pocketvlm_models", "from pocketvlm.vision import choose"),
    ],
)
def test_bad_imports_are_found(name: str, source: str) -> None:
    assert import_faults(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pocketvlm.native.llama", "import llama_cpp\nfrom .handle import Handle\nfrom pocketvlm import errors"),
        ("pocketvlm.server.app", "from pocketvlm import VLM"),
        ("pocketvlm.vision.families.some", "from pocketvlm.vision.family import Family"),
        ("pocketvlm_converters.proof.verify", "from pocketvlm import VLM"),
    ],
)
def test_good_imports_pass(name: str, source: str) -> None:
    assert not import_faults(name, source)


def test_bad_texts_are_found() -> None:
    assert family_faults("runtime/pocketvlm/vlm.py", "\n# as SmolVLM does\n")[0].startswith(
        "runtime/pocketvlm/vlm.py:2"
    )
    assert not family_faults("runtime/pocketvlm/vision/families/x.py", "# as SmolVLM does")
    assert text_faults("README.md", "see /" + "work/main") and text_faults("README.md", "see ../" + "shared/x")
    assert not text_faults("README.md", "net/" + "work/flow")
