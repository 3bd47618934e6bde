"""The proof at the end of a conversion, while the language model still exists in its original precision.

`python -m pocketvlm_converters.proof.conversion FOLDER ORIGINAL` runs it in its own process: an abort in native code
does not end the conversion, and the memory of the encoders is released.
"""

from __future__ import annotations

from pathlib import Path

from pocketvlm.errors import ProofError
from pocketvlm.files.bundle import Bundle, Check, FileEntry, Proof, sha256_of
from pocketvlm_converters import subprocess_task
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.proof import stages
from pocketvlm_converters.proof.distributions import Distributions
from pocketvlm_converters.proof.verify import encoder_of, examine
from pocketvlm_converters.samples.forward import Loaded
from pocketvlm_converters.samples.sets import proof_samples
from pocketvlm_converters.tokenizer import tokens_sha256

EXPECTED = "proof.npz"  # the bundle's file with the distributions that the original language model predicts
KEEP_IT = "keep_unproven=True keeps the bundle"  # what a conversion can do about a failed proof


def prove_conversion(folder: Path, original: Path, progress: Progress = silent) -> Check | None:
    """Prove the bundle in `folder`, whose tokenizer was already compared with the original's.

    `original` is the language model in the checkpoint's precision; if it does not exist, the bundle's own has the same
    precision. Its predictions are added to the bundle as a file, and the proof to the manifest. Returns the first check
    that failed, or None. Raises ProofError if the proof cannot run.
    """
    reason = subprocess_task.run(__name__, folder, original, progress=progress)
    if reason is not None:
        raise ProofError(f"cannot be proven: {reason}; {KEEP_IT}", folder)
    proof = Bundle(folder).manifest.proof
    assert proof is not None
    return proof.runs[0].deviation


def prove_in_process(folder: Path, original: Path, progress: Progress = silent) -> None:
    """Prove the bundle in this process and write the result into its manifest."""
    bundle = Bundle(folder)
    model, encoder = bundle.file("model"), encoder_of(bundle)
    assert model is not None and encoder is not None
    original = original if original.exists() else model
    with Loaded(original, encoder) as loaded:
        exchanges = loaded.exchanges(proof_samples(), progress)
    if exchanges:  # none if the context is too small for every sample
        path = folder / EXPECTED
        Distributions.of(original, [exchange for _, exchange in exchanges], progress).save(path)
        size, digest = path.stat().st_size, sha256_of(path)
        entry = FileEntry(name=path.name, role="proof", quantization="f32", size=size, sha256=digest)
        files = (*bundle.manifest.files, entry)
        bundle.manifest = bundle.manifest.model_copy(update={"files": files})
    with Loaded(model, encoder) as loaded:
        renders = stages.renders_sha256(loaded)
    proof = Proof(tokens_sha256=tokens_sha256(model), renders_sha256=renders, divergence=None)
    bundle.manifest = bundle.manifest.model_copy(update={"proof": proof})
    run = examine(bundle, exchanges, progress)
    divergences = [c.value for c in run.checks if c.stage == "language" and isinstance(c.value, float)]
    # The first of them is the mean.
    proof = proof.model_copy(update={"divergence": divergences[0] if divergences else None, "runs": (run,)})
    bundle.manifest.model_copy(update={"proof": proof}).write(folder)


if __name__ == "__main__":
    subprocess_task.main(prove_in_process)
