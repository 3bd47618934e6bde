"""What a bundle is worth: does it still do what the checkpoint does? Stage by stage, into one table."""

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

_NOTHING = Proof(tokens_sha256=None, renders_sha256=None, divergence=None)  # of a bundle that was never proven
_STAGES = ("files", "pairing", "tokenizer", "template", "encoders", "language")  # in their order
_PACKAGES = ("pocketvlm", "llama-cpp-python", "gguf")
_ADVICE = {
    "files": "a file is damaged or was replaced: get the bundle again",
    "pairing": "a file was made from another checkpoint: convert all of them together",
    "tokenizer": "this libllama splits text otherwise, or the vocabulary was changed: convert again with it",
    "template": "the chat template was changed, or the runtime reads it otherwise: convert again",
    "encoders": "the two vision encoders disagree: convert with --mmproj f16 or --onnx fp32 to see which is wrong",
    "preprocessing": "pictures or prompts reach the model otherwise than in transformers",
    "reference encoders": "vision encoder or projector deviate: see whether --mmproj f32 --onnx fp32 do, too",
    "reference logits": "the language model deviates: see whether --quantize f32 does, too",
    "reference answers": "the answers deviate: see whether --quantize f32 --mmproj f32 do, too",
    "language": "quantization costs too much: take a larger type, or the file is not the one that was converted",
}


def verify(path: str | Path, reference: str | Path | None = None, *, progress: Progress = silent) -> list[Run]:
    """Check a bundle against its manifest and what its conversion wrote down, then against transformers running the
    checkpoint at `reference`, if that is given and the first run finds nothing. Writes nothing.

    Raises ModelError leaves where there is no bundle to check, NativeLibraryError where transformers or torch is
    missing; what is wrong with a bundle is in the checks.
    """
    bundle = Bundle(path, check=False)
    if reference is not None:
        from pocketvlm_converters.proof.reference import Reference, checks

        original = Reference(Path(reference))
    runs = [_examine_apart(bundle, progress)]
    if reference is not None and runs[0].deviation is None:
        found = tuple(_guarded("preprocessing", checks(bundle, original, progress)))
        more = versions("torch", "transformers")
        runs.append(Run(against="reference", versions=more, checks=found, reference=original.sha256))
    return runs


def write(path: str | Path, run: Run) -> None:
    """Put a run into the manifest, in place of an earlier one of its kind. Raises OutputError."""
    bundle = Bundle(path, check=False)
    proof = bundle.manifest.proof or _NOTHING
    try:
        bundle.manifest.model_copy(update={"proof": proof.with_run(run)}).write(bundle.path)
    except OSError as error:
        raise OutputError(f"the manifest cannot be written: {error.strerror}", bundle.path) from error


def advice(check: Check) -> str:
    """What deviates and what to do about it, in a line."""
    limit = f", must be {check.limit}" if check.limit else ""
    return f"{check.stage}: {check.measured}: {check.shown}{limit}; {_ADVICE[check.stage]}"


def versions(*more: str) -> dict[str, str]:
    """Of the packages that a result depends on."""
    found = {"onnxruntime": onnx.version()}
    for package in (*_PACKAGES, *more):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return dict(sorted(found.items()))


def examine(bundle: Bundle, asked: list[SampleExchange] | None = None, progress: Progress = silent) -> Run:
    """All checks that need no original; `asked` are the proof samples, where they are at hand."""
    return Run(against="itself", versions=versions(), checks=tuple(_checks(bundle, asked, progress)))


def _examine_apart(bundle: Bundle, progress: Progress) -> Run:
    """The same in a process of its own: where native code aborts, that is a check that failed."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "checks.jsonl"
        reason = subprocess_task.run(__name__, bundle.path, told, progress=progress)
        lines = told.read_text("utf-8").splitlines() if told.exists() else []
    checks = [Check.model_validate_json(line) for line in lines]
    if reason is not None:
        reached = _STAGES.index(checks[-1].stage) + 1 if checks else 0
        checks.append(_failed(_STAGES[min(reached, len(_STAGES) - 1)], reason))
    return Run(against="itself", versions=versions(), checks=tuple(checks))


def _tell_checks(bundle: Path, told: Path, progress: Progress) -> None:
    with told.open("w", encoding="utf-8") as file:
        for check in _checks(Bundle(bundle, check=False), None, progress):
            print(check.model_dump_json(), file=file, flush=True)


def _checks(bundle: Bundle, asked: list[SampleExchange] | None, progress: Progress) -> Iterator[Check]:
    progress("files", 0, 1)
    # Where these fail, native code must not see the files, and what it would measure means nothing.
    for stage in (stages.files, stages.pairing):
        for check in stage(bundle):
            yield check
            if check.passed is False:
                return
    progress("files", 1, 1)
    proof = bundle.manifest.proof or _NOTHING
    yield from _guarded("tokenizer", stages.tokenizer(bundle, proof.tokens_sha256))
    model, encoder = bundle.file("model"), encoder_of(bundle)
    assert model is not None
    if encoder is None:
        return
    try:
        with Loaded(model, encoder) as loaded:
            yield from _guarded("template", stages.template(bundle, loaded, proof.renders_sha256))
            asked = loaded.asked(proof_samples(), progress) if asked is None else asked
    except PocketVLMError as error:
        yield _failed("encoders", error)
        return
    yield from _guarded("encoders", stages.encoders(bundle, asked, progress))
    yield from _guarded("language", stages.language(bundle, asked, proof.divergence, progress))


def _guarded(stage: str, checks: Iterator[Check]) -> Iterator[Check]:
    """A stage that cannot run has failed; those after it may tell more."""
    try:
        yield from checks
    except PocketVLMError as error:
        yield _failed(stage, error)


def _failed(stage: str, reason: object) -> Check:
    return Check(stage=stage, measured="can be run", value=str(reason), passed=False)


def encoder_of(bundle: Bundle) -> Path | None:
    """The one that looks at the pictures of the prompts."""
    return next((path for role in stages.ENCODERS if (path := bundle.file(role))), None)


if __name__ == "__main__":
    subprocess_task.main(_tell_checks)
