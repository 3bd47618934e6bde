"""Check, stage by stage, that a bundle behaves as its checkpoint does."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pocketvlm.errors import OutputError, PocketVLMError
from pocketvlm.files.bundle import Bundle, Check, Proof, Run
from pocketvlm.vision import onnx
from pocketvlm_converters import subprocess_task
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.proof import stages
from pocketvlm_converters.samples.forward import Loaded, SampleExchange
from pocketvlm_converters.samples.sets import proof_samples

_NO_PROOF = Proof(tokens_sha256=None, renders_sha256=None, divergence=None)  # for a bundle that was never proven
_STAGES = ("files", "pairing", "tokenizer", "template", "encoders", "language")  # in the order of their checks
_PACKAGES = ("pocketvlm", "llama-cpp-python", "gguf")
_ADVICE = {
    "files": "a file is damaged or was replaced: convert or download the bundle again",
    "pairing": "a file was made from another checkpoint: convert all files together",
    "tokenizer": "this libllama tokenizes differently, or the vocabulary was changed: convert again",
    "template": "the chat template was changed, or the runtime renders it differently: convert again",
    "encoders": 'the two vision encoders disagree: convert with mmproj="f16" or onnx="fp32" to see which is wrong',
    "preprocessing": "the model's input (pixels or prompt tokens) differs from that in transformers",
    "reference encoders": 'the vision encoder or projector deviates: check whether mmproj="f32" onnx="fp32" does, too',
    "reference logits": 'the language model deviates: check whether quantize="f32" does, too',
    "reference answers": 'the answers deviate: check whether quantize="f32" mmproj="f32" does, too',
    "language": "quantization changes the predictions too much: use a larger type, or check that no file was replaced",
}


def verify(path: str | Path, reference: str | Path | None = None, *, progress: Progress = silent) -> list[Run]:
    """Check a bundle against its manifest and the records of its conversion. Writes nothing.

    With `reference`, the path of the checkpoint, a second run compares it with transformers, if no check has failed.
    Faults of the bundle are in the checks. Raises a ModelError if there is no bundle, NativeLibraryError if
    transformers or torch is missing, CheckpointError if transformers cannot load the checkpoint.
    """
    bundle = Bundle(path, check=False)
    if reference is not None:
        from pocketvlm_converters.proof.reference import Reference, checks

        original = Reference(Path(reference))
    runs = [_examine_in_subprocess(bundle, progress)]
    if reference is not None and runs[0].deviation is None:
        comparisons = tuple(_guarded("preprocessing", checks(bundle, original, progress)))
        packages = versions("torch", "transformers")
        runs.append(Run(against="reference", versions=packages, checks=comparisons, reference=original.sha256))
    return runs


def write(path: str | Path, run: Run) -> None:
    """Write a run to the manifest, where it replaces the earlier one of its kind. Raises OutputError."""
    bundle = Bundle(path, check=False)
    proof = bundle.manifest.proof or _NO_PROOF
    try:
        bundle.manifest.model_copy(update={"proof": proof.with_run(run)}).write(bundle.path)
    except OSError as error:
        raise OutputError(f"the manifest cannot be written: {error.strerror}", bundle.path) from error


def advice(check: Check) -> str:
    """Return one line about a failed check: what deviates, and what to do about it."""
    limit = f", must be {check.limit}" if check.limit else ""
    return f"{check.stage}: {check.measured}: {check.shown}{limit}; {_ADVICE[check.stage]}"


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the packages that a result depends on, and of `more` packages."""
    installed = {"onnxruntime": onnx.version()}
    for package in (*_PACKAGES, *more):
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return dict(sorted(installed.items()))


def examine(bundle: Bundle, exchanges: list[SampleExchange] | None = None, progress: Progress = silent) -> Run:
    """Run all checks that do not need the original. `exchanges` are the proof samples, if they are already encoded."""
    return Run(against="itself", versions=versions(), checks=tuple(_checks(bundle, exchanges, progress)))


def _examine_in_subprocess(bundle: Bundle, progress: Progress) -> Run:
    """Run the checks in another process, so that an abort in native code becomes a failed check."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "checks.jsonl"
        reason = subprocess_task.run(__name__, bundle.path, output, progress=progress)
        lines = output.read_text("utf-8").splitlines() if output.exists() else []
    checks = [Check.model_validate_json(line) for line in lines]
    if reason is not None:
        next_stage = _STAGES.index(checks[-1].stage) + 1 if checks else 0
        checks.append(_failed(_STAGES[min(next_stage, len(_STAGES) - 1)], reason))
    return Run(against="itself", versions=versions(), checks=tuple(checks))


def _write_checks(bundle: Path, output: Path, progress: Progress) -> None:
    with output.open("w", encoding="utf-8") as file:
        for check in _checks(Bundle(bundle, check=False), None, progress):
            print(check.model_dump_json(), file=file, flush=True)


def _checks(bundle: Bundle, exchanges: list[SampleExchange] | None, progress: Progress) -> Iterator[Check]:
    progress("files", 0, 1)
    # If one of these fails, native code must not read the files, and its measurements would be meaningless.
    for stage in (stages.files, stages.pairing):
        for check in stage(bundle):
            yield check
            if check.passed is False:
                return
    progress("files", 1, 1)
    proof = bundle.manifest.proof or _NO_PROOF
    yield from _guarded("tokenizer", stages.tokenizer(bundle, proof.tokens_sha256))
    model, encoder = bundle.file("model"), encoder_of(bundle)
    assert model is not None
    if encoder is None:
        return
    try:
        with Loaded(model, encoder) as loaded:
            yield from _guarded("template", stages.template(bundle, loaded, proof.renders_sha256))
            exchanges = loaded.exchanges(proof_samples(), progress) if exchanges is None else exchanges
    except PocketVLMError as error:
        yield _failed("encoders", error)
        return
    yield from _guarded("encoders", stages.encoders(bundle, exchanges, progress))
    yield from _guarded("language", stages.language(bundle, exchanges, proof.divergence, progress))


def _guarded(stage: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Turn an error into a failed check of the stage; the stages after it still run."""
    try:
        yield from checks
    except PocketVLMError as error:
        yield _failed(stage, error)


def _failed(stage: str, reason: object) -> Check:
    return Check(stage=stage, measured="can be run", value=str(reason), passed=False)


def encoder_of(bundle: Bundle) -> Path | None:
    """Return the vision encoder that encodes the pictures of the prompts."""
    return next((path for role in stages.ENCODERS if (path := bundle.file(role))), None)


if __name__ == "__main__":
    subprocess_task.main(_write_checks)
