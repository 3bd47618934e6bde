"""A proof finds what is wrong with a bundle, at the stage where it is wrong; a sound bundle passes.

A file that was changed after the conversion is found by its hash. Whoever replaces a file may write a new manifest as
well (`reseal`): then the later stages must find it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from pocketvlm.cli.inspect import inspect
from pocketvlm.errors import ModelNotFoundError, OutputError, ProofError
from pocketvlm.files.bundle import Bundle, Manifest, sha256_of
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.cli.convert import convert as convert_command
from pocketvlm_converters.cli.verify import verify as verify_command
from pocketvlm_converters.convert import convert
from pocketvlm_converters.proof import thresholds
from pocketvlm_converters.proof.verify import verify, write
from tiers import slow_but

ROOT = Path(__file__).parents[2]
STAGES = ["files", "pairing", "tokenizer", "template", "encoders", "language"]
REFERENCE = ["preprocessing", "reference encoders", "reference logits", "reference answers"]
MODEL, MMPROJ, VISION = "model-Q5_K_M.gguf", "mmproj-f16.gguf", "vision-fp32.onnx"

app = typer.Typer()
for name, command in (("convert", convert_command), ("verify", verify_command), ("inspect", inspect)):
    app.command(name)(command)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def sound(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write to it."""
    return convert(pristine, tmp_path_factory.mktemp("sound") / "b", quantize="Q5_K_M", mmproj="f16", onnx="fp32").path


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def other(make_model: Any, save: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same shapes and types, made of other weights."""
    folder = tmp_path_factory.mktemp("other")
    model = make_model()
    model.get_parameter("model.connector.modality_projection.proj.weight").data *= 1.5
    save(model, folder / "checkpoint")
    options: dict[str, Any] = {"quantize": "Q5_K_M", "mmproj": "f16", "onnx": "fp32", "verify": False}
    return convert(folder / "checkpoint", folder / "bundle", **options).path


def reseal(bundle: Path) -> None:
    manifest = Bundle(bundle, check=False).manifest
    sealed = [
        entry.model_copy(
            update={"size": (bundle / entry.name).stat().st_size, "sha256": sha256_of(bundle / entry.name)}
        )
        for entry in manifest.files
    ]
    manifest.model_copy(update={"files": tuple(sealed)}).write(bundle)


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def tensor(path: Path, name: str) -> Any:
    """The data of a tensor, to be changed in the file."""
    (found,) = [t for t in gguf.GGUFReader(path, "r+").tensors if t.name == name]
    return found.data


def deviates(bundle: Path, stage: str, *wanted: str) -> None:
    """The command ends with 1 and names this stage, and nothing of the bundle changes."""
    before = (bundle / "manifest.json").read_bytes()
    result = run("verify", bundle)
    assert result.exit_code == 1, result.output
    assert f"deviates: {stage}: " in result.stderr
    for text in wanted:
        assert text in result.stderr
    assert (bundle / "manifest.json").read_bytes() == before


# ---- a sound bundle


def test_a_sound_bundle_passes(sound: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sound.iterdir()}
    result = run("verify", sound)
    assert result.exit_code == 0, result.output
    assert "the bundle behaves as its checkpoint does" in result.stdout
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sound.iterdir()} == before
    (found,) = verify(sound)
    assert list(dict.fromkeys(check.stage for check in found.checks)) == STAGES
    assert all(check.passed for check in found.checks if check.measured not in ("largest KL", "same likeliest token"))
    hashes = {entry.sha256 for entry in Bundle(sound).manifest.files}
    assert all(check.files and set(check.files) <= hashes for check in found.checks)
    assert set(found.versions) == {"pocketvlm", "llama-cpp-python", "onnxruntime", "gguf"}


def test_the_manifest_says_what_was_proven(sound: Path) -> None:
    proof = Bundle(sound).manifest.proof
    assert proof is not None and len(proof.runs) == 1 and proof.runs[0].deviation is None
    assert proof.divergence is not None and 0 < proof.divergence < thresholds.language_limit("Q5_K_M")  # type: ignore[operator]
    told = run("inspect", sound).stdout
    assert "checks hold" in told and "mean KL, Q5_K_M" in told and "nothing was proven" not in told
    assert (sound / "proof.npz").stat().st_size < 500_000


def test_json_and_write(bundle: Path) -> None:
    result = run("verify", bundle, "--json")
    told = json.loads(result.stdout)
    assert told["passed"] and told["runs"][0]["checks"][0]["stage"] == "files"
    before = Bundle(bundle).manifest
    before.model_copy(update={"proof": before.proof.model_copy(update={"runs": ()})}).write(bundle)  # type: ignore[union-attr]
    assert "nothing was proven" in run("inspect", bundle).stdout
    assert run("verify", bundle, "--write").exit_code == 0
    proof = Bundle(bundle).manifest.proof
    assert proof is not None and proof.runs[0].deviation is None and proof.divergence == before.proof.divergence  # type: ignore[union-attr]
    assert "checks hold" in run("inspect", bundle).stdout
    assert {path.name for path in bundle.iterdir()} == {MODEL, MMPROJ, VISION, "proof.npz", "manifest.json"}


def test_without_a_proof(pristine: Path, tmp_path: Path) -> None:
    """A bundle that was converted without, or before there were any."""
    result = run("convert", pristine, "-o", tmp_path / "bundle", "--quantize", "f16", "--no-verify")
    assert result.exit_code == 0 and "nothing was proven" in result.stdout
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.proof is None and manifest.entry("proof") is None
    old = {key: value for key, value in manifest.model_dump(mode="json").items() if key != "proof"}
    assert Manifest.model_validate(old) == manifest
    told = run("verify", tmp_path / "bundle")
    assert told.exit_code == 0
    assert "nothing to compare with for tokenizer, template, language" in told.stdout
    assert "nothing was proven" in run("inspect", tmp_path / "bundle").stdout


@pytest.mark.slow
def test_one_encoder(pristine: Path, tmp_path: Path) -> None:
    made = convert(pristine, tmp_path / "bundle", quantize="q8_0", mmproj="none")
    (found,) = verify(made.path)
    assert found.deviation is None
    assert [check.passed for check in found.checks if check.stage == "encoders"] == [None]


# ---- what is wrong, and where


@pytest.mark.parametrize("name", [MODEL, MMPROJ, VISION, "proof.npz"])
def test_a_flipped_byte(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    deviates(bundle, "files", name)


def test_a_missing_and_a_short_file(bundle: Path) -> None:
    (bundle / VISION).write_bytes((bundle / VISION).read_bytes()[:-1])
    deviates(bundle, "files", VISION)
    (bundle / VISION).unlink()
    deviates(bundle, "files", VISION)


@pytest.mark.parametrize("name", [MODEL, MMPROJ, VISION])
def test_a_file_of_another_checkpoint(bundle: Path, other: Path, name: str) -> None:
    shutil.copy(other / name, bundle / name)
    deviates(bundle, "files", name)
    reseal(bundle)
    deviates(bundle, "pairing", "not a pair" if name != MMPROJ else MMPROJ)


def test_encoders_that_cut_pictures_otherwise(bundle: Path) -> None:
    size = gguf.GGUFReader(bundle / MMPROJ, "r+").get_field("clip.vision.preproc_image_size")
    size.parts[size.data[0]][0] *= 2
    reseal(bundle)
    deviates(bundle, "pairing", "prepare pictures differently")


def test_another_tokenizer(bundle: Path) -> None:
    replace(bundle / MODEL, b"smollm", b"falcon")  # names of pre-tokenizers
    reseal(bundle)
    deviates(bundle, "tokenizer")


@pytest.mark.slow
def test_a_vocabulary_with_a_token_twice(bundle: Path) -> None:
    """libllama would end the process."""
    replace(bundle / "model-Q5_K_M.gguf", b"[PAD697]", b"[PAD696]")
    reseal(bundle)
    deviates(bundle, "pairing", "'[PAD696]' twice")


def test_an_edited_template(bundle: Path) -> None:
    replace(bundle / MODEL, b"'Assistant:'", b"'Asistente:'")
    reseal(bundle)
    deviates(bundle, "template", "rendered prompts")


@pytest.mark.slow
def test_a_template_that_drops_the_text(bundle: Path) -> None:
    replace(bundle / MODEL, b"{% elif part['type'] == 'text' %}", b"{% elif part['type'] == 'texx' %}")
    reseal(bundle)
    deviates(bundle, "template")


@pytest.mark.slow
def test_no_template(bundle: Path) -> None:
    """As a conversion refuses, and as a bundle of older days may be."""
    replace(bundle / MODEL, b"tokenizer.chat_template", b"tokenizer.that_template")
    reseal(bundle)
    deviates(bundle, "template", "turns and pictures: there is none")


@pytest.mark.parametrize("factor", slow_but([1.2, 0.7], 1.2))
def test_a_projector_of_another_scale(bundle: Path, factor: float) -> None:
    """Which a cosine does not see."""
    tensor(bundle / MMPROJ, "mm.model.fc.weight")[:] *= np.float16(factor)
    reseal(bundle)
    deviates(bundle, "encoders", "lengths")


@pytest.mark.slow
def test_a_layer_gone_wrong(bundle: Path) -> None:
    rows = tensor(bundle / MMPROJ, "v.blk.1.attn_v.weight")
    rows[:8] = rows[8:16].copy()
    reseal(bundle)
    deviates(bundle, "encoders", "cosine")


def test_a_worse_quantization_in_its_place(bundle: Path, pristine: Path, tmp_path: Path) -> None:
    worse = convert(pristine, tmp_path / "worse", quantize="Q4_0", mmproj="none", verify=False)
    shutil.copy(worse.path / "model-Q4_0.gguf", bundle / MODEL)
    reseal(bundle)
    deviates(bundle, "language", "mean KL", "larger type")


@pytest.mark.slow
def test_a_type_that_cannot_be_so_far_off(bundle: Path) -> None:
    """Absolute limits hold where nobody wrote down how far it was."""
    manifest = Bundle(bundle).manifest
    assert manifest.proof is not None
    sealed = [e.model_copy(update={"quantization": "F16"}) if e.role == "model" else e for e in manifest.files]
    proof = manifest.proof.model_copy(update={"divergence": None})
    manifest.model_copy(update={"files": tuple(sealed), "proof": proof}).write(bundle)
    deviates(bundle, "language", "mean KL, F16")


@pytest.mark.slow
def test_what_was_written_down_is_gone(bundle: Path) -> None:
    (bundle / "proof.npz").write_bytes(b"PK\3\4 not really")
    reseal(bundle)
    deviates(bundle, "language", "proof.npz")


@pytest.mark.slow
def test_a_context_that_holds_no_sample(make_model: Any, save: Any, tmp_path: Path) -> None:
    save(make_model(max_position_embeddings=64), tmp_path / "checkpoint")
    made = convert(tmp_path / "checkpoint", tmp_path / "bundle", quantize="f16")
    (found,) = verify(made.path)
    assert found.deviation is None
    assert {check.stage for check in found.checks if "no sample fits" in check.shown} == {"encoders", "language"}


@pytest.mark.slow
def test_ids_beyond_the_vocabulary(bundle: Path) -> None:
    with np.load(bundle / "proof.npz") as file:
        arrays = dict(file)
    arrays["ids"][0, 0] = 1 << 20
    np.savez(bundle / "proof.npz", **arrays)
    reseal(bundle)
    deviates(bundle, "language", "vocabulary")


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.full((1, 1), 0.5)},
        {"logprobs": np.array([["x"]])},
        {"logprobs": np.full((1, 1), np.nan, np.float32)},
        {name: np.empty((0, 0)[: 1 + (name != "answers")], np.uint32) for name in ("answers", "ids")},
    ],
)
def test_expectations_that_somebody_made_up(bundle: Path, change: dict[str, Any]) -> None:
    with np.load(bundle / "proof.npz") as file:
        arrays = dict(file)
    np.savez(bundle / "proof.npz", **arrays | change)
    reseal(bundle)
    deviates(bundle, "language", "is not a file of expected answers")


def test_a_language_model_that_computes_no_numbers(bundle: Path) -> None:
    """NaN is neither above a limit nor below it."""
    tensor(bundle / MODEL, "output_norm.weight")[:] = np.nan
    reseal(bundle)
    deviates(bundle, "language", "NaN")


@pytest.mark.slow
def test_an_encoder_that_computes_no_numbers(bundle: Path) -> None:
    tensor(bundle / MMPROJ, "mm.model.fc.weight")[:] = np.nan
    reseal(bundle)
    deviates(bundle, "encoders", "cosine", "nan")
    told = json.loads(run("verify", bundle, "--json").stdout, parse_constant=pytest.fail)
    assert "nan" in [check["value"] for check in told["runs"][0]["checks"]]


@pytest.mark.slow
def test_a_full_disk_leaves_the_manifest_as_it_was(bundle: Path, file_limit: Any) -> None:
    before = (bundle / "manifest.json").read_bytes()
    (found,) = verify(bundle)
    with file_limit() as limit:
        limit(100)
        with pytest.raises(OutputError, match="cannot be written"):
            write(bundle, found)
    assert (bundle / "manifest.json").read_bytes() == before
    assert {path.name for path in bundle.iterdir()} == {MODEL, MMPROJ, VISION, "proof.npz", "manifest.json"}


def test_no_bundle(tmp_path: Path) -> None:
    assert isinstance(run("verify", tmp_path / "nothing").exception, ModelNotFoundError)


# ---- at the end of a conversion


@pytest.mark.slow
def test_a_conversion_that_fails_its_proof(make_model: Any, save: Any, tmp_path: Path) -> None:
    """A model so sure of everything that 8 bits are too few for it."""
    model = make_model()
    model.model.text_model.norm.weight.data *= 300
    pristine = tmp_path / "checkpoint"
    save(model, pristine)
    with pytest.raises(ProofError, match="language: mean KL, Q8_0"):
        convert(pristine, tmp_path / "bundle", quantize="Q8_0")
    result = run("convert", pristine, "-o", tmp_path / "bundle", "--quantize", "q8_0")
    assert result.exit_code == 1 and "language: mean KL, Q8_0" in result.stderr and "--keep-unproven" in result.stderr
    assert list(tmp_path.iterdir()) == [pristine]
    result = run("convert", pristine, "-o", tmp_path / "bundle", "--quantize", "q8_0", "--keep-unproven")
    assert result.exit_code == 0 and "UNPROVEN: language" in result.stdout
    assert "FAILED  mean KL, Q8_0" in run("inspect", tmp_path / "bundle").stdout
    deviation = verify(tmp_path / "bundle")[0].deviation
    assert deviation is not None and deviation.measured == "mean KL, Q8_0"


@pytest.mark.slow
def test_a_proof_that_is_killed(pristine: Path, tmp_path: Path) -> None:
    """As the system does where memory is short; what took hours can be kept."""

    def kill(step: str, done: int, total: int) -> None:  # noqa: ARG001
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(tmp_path).encode() in (words := command.read_bytes()) and b"proof.conversion" in words:
                    os.kill(int(command.parent.name), signal.SIGKILL)

    with pytest.raises(ProofError, match=r"signal 9.*keep_unproven=True"):
        convert(pristine, tmp_path / "bundle", quantize="Q8_0", progress=kill)
    assert list(tmp_path.iterdir()) == []
    kept = convert(pristine, tmp_path / "bundle", quantize="Q8_0", progress=kill, keep_unproven=True)
    assert "signal 9" in kept.manifest.notes[-1] and kept.manifest.proof is None
    kept.verify()
    assert {path.name for path in kept.path.iterdir()} == {"manifest.json", *(f.name for f in kept.manifest.files)}


# ---- beside transformers


@pytest.mark.slow
@pytest.mark.oracle
def test_iota_beside_transformers(tmp_path: Path) -> None:
    checkpoint = ROOT / "models" / "iota" / "checkpoint"
    path = convert(checkpoint, tmp_path / "iota", quantize="f32", mmproj="f32", onnx="fp32").path
    result = run("verify", path, "--reference", checkpoint, "--write")
    assert result.exit_code == 0, result.output
    proof = Bundle(path).manifest.proof
    assert proof is not None
    itself, reference = proof.runs
    assert (itself.against, reference.against) == ("itself", "reference")
    assert list(dict.fromkeys(check.stage for check in reference.checks)) == REFERENCE
    assert reference.reference == Checkpoint(checkpoint).source.sha256
    assert {"torch", "transformers"} <= set(reference.versions)
    told = run("inspect", path).stdout
    assert "against transformers" in told and "same of 32 greedy tokens" in "".join(
        c.measured for c in reference.checks
    )


@pytest.mark.slow
@pytest.mark.oracle
def test_a_bundle_of_another_checkpoint_beside_transformers(sound: Path, other: Path, pristine: Path) -> None:
    assert run("verify", sound, "--reference", pristine).exit_code == 0
    result = run("verify", other, "--reference", pristine)
    assert result.exit_code == 1 and "deviates: reference encoders: " in result.stderr


def test_without_transformers(sound: Path, pristine: Path) -> None:
    code = "import sys\nsys.modules['transformers'] = None\nfrom pocketvlm.cli import main\nmain()\n"
    arguments = [sys.executable, "-c", code, "verify", str(sound), "--reference", str(pristine)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "transformers is missing" in done.stderr and 'pip install ".[oracle]"' in done.stderr
    assert "Traceback" not in done.stderr
