"""All or nothing: a bundle appears whole, and otherwise nothing does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pocketvlm.errors import OutputError, PocketVLMError
from pocketvlm.files.bundle import Bundle, sha256_of
from pocketvlm_converters.cli.convert import convert as command
from pocketvlm_converters.convert import convert
from pocketvlm_converters.quantization.quantize import quantize_language

ROOT = Path(__file__).parents[2]
STEPS = ["mmproj q8_0", "encoder inputs", "onnx int8", "language model", "quantize Q4_K_M", "tokenizer"]
PROOF = ["pictures", "original answers", "files", "encoders", "answers"]


def refused(checkpoint: Path, output: Path, *wanted: str, **options: Any) -> OutputError:
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, output, **options)
    assert str(output) in str(caught.value)
    for text in wanted:
        assert text in str(caught.value)
    return caught.value


def test_bundle(pristine: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    convert(pristine, tmp_path / "mine", progress=lambda *at: steps.append(at[0]))
    assert list(dict.fromkeys(steps)) == STEPS + PROOF
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    bundle = Bundle(tmp_path / "mine")
    bundle.verify()
    manifest = bundle.manifest
    names = {"model-Q4_K_M.gguf", "mmproj-q8_0.gguf", "vision-int8.onnx", "proof.npz"}
    assert {path.name for path in bundle.path.iterdir()} == {*names, "manifest.json"}
    assert {entry.name for entry in manifest.files} == names
    assert (manifest.name, manifest.family) == ("mine", "smolvlm")
    assert manifest.architecture == "Idefics3ForConditionalGeneration"
    types = {entry.role: entry.quantization for entry in manifest.files}
    assert types == {"model": "Q4_K_M", "mmproj": "q8_0", "vision": "int8", "proof": "f32"}
    assert manifest.source.files["model.safetensors"] == sha256_of(pristine / "model.safetensors")
    assert set(manifest.versions) == {"pocketvlm", "gguf", "llama-cpp-python", "onnx"}
    assert "not multiples of 256" in manifest.notes[0]


def test_the_folder_is_as_readable_as_any_other(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", verify=False)
    assert bundle.path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_needs_neither_torch_nor_transformers(pristine: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from pocketvlm_converters.convert import convert\n"
        "convert(sys.argv[1], sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(pristine), str(tmp_path / "bundle")], check=True)
    Bundle(tmp_path / "bundle").verify()


@pytest.mark.parametrize("quantize", ["f16", "Q4_K_M"])
def test_the_same_checkpoint_gives_the_same_bytes(pristine: Path, tmp_path: Path, quantize: str) -> None:
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        convert(pristine, tmp_path / parent / "bundle", quantize=quantize)
    one, two = (Bundle(tmp_path / parent / "bundle").manifest for parent in ("one", "two"))
    assert one == two


def test_existing_output(pristine: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    convert(pristine, output, quantize="f16", verify=False)
    before = (output / "manifest.json").read_bytes()
    refused(pristine, output, "already exists", "force=True")
    assert (output / "manifest.json").read_bytes() == before
    convert(pristine, output, quantize="bf16", force=True, verify=False)
    assert Bundle(output).manifest.files[0].quantization == "BF16"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_force_replaces_nothing_but_bundles(checkpoint: Path, tmp_path: Path) -> None:
    folder, file, link = tmp_path / "photos", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "holiday.jpg").write_text("dear")
    file.write_text("dear")
    link.symlink_to(folder)
    for output in (folder, file, link):
        refused(checkpoint, output, "not a bundle", force=True)
    for output in (checkpoint, tmp_path):
        refused(checkpoint, output, "the checkpoint's own folder", force=True)
    assert (folder / "holiday.jpg").read_text() == file.read_text() == "dear"
    assert (checkpoint / "config.json").exists()
    (folder / "holiday.jpg").unlink()
    convert(checkpoint, folder, quantize="f16", force=True, verify=False)


def test_output_below_a_file_or_nothing(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(pristine, tmp_path / "file" / "bundle", "does not exist")
    refused(pristine, tmp_path / "nowhere" / "bundle", "does not exist")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_read_only_target(pristine: Path) -> None:
    """No permission bit stops root; no user can make a folder in /proc."""
    error = refused(pristine, Path("/proc/bundle"), "cannot be written")
    assert isinstance(error, OSError) and error.__cause__ is not None


@pytest.mark.parametrize("size", [0, 100, 30_000, 200_000, 400_000])
def test_full_disk(pristine: Path, tmp_path: Path, file_limit: Any, size: int) -> None:
    with file_limit() as limit:
        limit(size)
        error = refused(pristine, tmp_path / "bundle", "cannot be written", os.strerror(errno.EFBIG))
    assert error.path == tmp_path / "bundle"
    assert list(tmp_path.iterdir()) == []


def test_full_disk_under_libllama(
    pristine: Path, tmp_path: Path, file_limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_limit() as limit:

        def fill_first(*arguments: Any) -> list[str]:
            limit(50_000)
            return quantize_language(*arguments)

        monkeypatch.setattr("pocketvlm_converters.convert.quantize_language", fill_first)
        refused(pristine, tmp_path / "bundle", "cannot be written", os.strerror(errno.EFBIG))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [*STEPS, *PROOF])
@pytest.mark.parametrize("existing", [False, True])
def test_interrupted(pristine: Path, tmp_path: Path, step: str, existing: bool) -> None:
    """A real Ctrl-C in each step; a bundle that was to be replaced stays as it was."""
    output = tmp_path / "bundle"
    if existing:
        convert(pristine, output, quantize="f16", mmproj="f16", verify=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    def interrupt(*at: object) -> None:
        if at[0] == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        convert(pristine, output, force=True, progress=interrupt)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == ([output] if existing else [])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_command_ended_by_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """A service manager, a closed terminal, Ctrl-C: no hidden folder is left."""
    code = "from pocketvlm.cli import main; main()"
    checkpoint = ROOT / "models" / "iota" / "checkpoint"  # large enough to be met at work
    process = subprocess.Popen(
        [sys.executable, "-c", code, "convert", str(checkpoint), "-o", str(tmp_path / "bundle")], stderr=subprocess.PIPE
    )
    while not any(tmp_path.iterdir()):
        assert process.poll() is None, "it must get to work"
        time.sleep(0.005)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_command(pristine: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    output = tmp_path / "my bundle"
    result = CliRunner().invoke(app, [str(pristine), "-o", str(output), "--quantize", "q8_0", "--mmproj", "f16"])
    assert result.exit_code == 0, result.output
    assert "model-Q8_0.gguf" in result.stdout and "mmproj-f16.gguf" in result.stdout and "MB" in result.stdout
    assert f"""pocketvlm chat "What is this?" -i photo.jpg --model '{output}'""" in result.stdout
    assert "language model" not in result.stdout + result.stderr, "bars are for terminals"
    again = CliRunner().invoke(app, [str(pristine), "-o", str(output)])
    assert isinstance(again.exception, PocketVLMError) and again.exit_code != 0
    forced = CliRunner().invoke(app, [str(pristine), "-o", str(output), "--force"])
    assert forced.exit_code == 0 and "note: " in forced.stderr
