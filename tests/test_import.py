"""Importing pocketvlm is light: nothing heavy is loaded before it is needed. The time is measured in benchmarks/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"llama_cpp", "llguidance", "onnxruntime", "onnx", "torch", "transformers", "tokenizers", "gguf"}


@pytest.mark.parametrize(
    ("package", "needed"), [("pocketvlm", set()), ("pocketvlm_models", set()), ("pocketvlm_converters", {"gguf"})]
)
def test_import_is_light(package: str, needed: set[str]) -> None:
    code = f"import {package}, json, sys; print(json.dumps(list(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert HEAVY & set(json.loads(child.stdout)) <= needed


@pytest.mark.parametrize(
    "code", ["from pocketvlm import ChatRequest, LoadOptions, RequestError", "import pocketvlm.cli.commands"]
)
def test_what_is_imported_before_a_model_is_light(code: str) -> None:
    code += "; import json, sys; print(json.dumps(list(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not HEAVY & set(json.loads(child.stdout))


def test_the_package_is_the_command() -> None:
    child = subprocess.run([sys.executable, "-m", "pocketvlm", "--version"], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0
    assert child.stdout.startswith("pocketvlm ")


def test_one_question_needs_no_editor(sample_png: Path) -> None:
    """What edits lines and renders Markdown is imported in a conversation alone."""
    code = f"""
import sys
from pathlib import Path
sys.argv = ["pocketvlm", "chat", "Hi", "-i", {str(sample_png)!r}, "--max-tokens", "1"]
from pocketvlm.cli import main
try:
    main()
finally:
    print(sorted({{"prompt_toolkit", "markdown_it", "pygments", "asyncio", "pocketvlm.server"}} & set(sys.modules)))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.stdout.splitlines()[-1:] == ["[]"], child.stdout + child.stderr


def test_the_version_needs_no_command() -> None:
    code = """
import sys
sys.argv = ["pocketvlm", "--version"]
from pocketvlm.cli import main
try:
    main()
finally:
    print(sorted({"pocketvlm.server", "pocketvlm.chat", "pocketvlm.messages", "numpy", "rich"} & set(sys.modules)))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.stdout.splitlines()[-1:] == ["[]"], child.stdout + child.stderr
