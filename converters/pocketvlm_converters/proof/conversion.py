"""The proof at the end of a conversion, while the language model is still there in its original precision.

`python -m pocketvlm_converters.proof.conversion FOLDER ORIGINAL` is a process of its own: an abort in native code ends
nothing else, and what the encoders hold is given back.
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

EXPECTED = "proof.npz"  # what the original says, in the bundle


def prove_conversion(folder: Path, original: Path, progress: Progress = silent) -> Check | None:
    """Prove the bundle in `folder`, whose tokenizer was just compared with the original's. The first check that fails.

    `original` is the language model in the checkpoint's precision; where it is missing, the bundle's own has lost
    nothing. What it expects goes into the bundle, the proof into the manifest. Raises ProofError where it cannot run.
    """
    reason = subprocess_task.run(__name__, folder, original, progress=progress)
    if reason is not None:
        raise ProofError(f"cannot be proven: {reason}; --keep-unproven keeps the bundle", folder)
    proof = Bundle(folder).manifest.proof
    assert proof is not None
    return proof.runs[0].deviation


def prove_here(folder: Path, original: Path, progress: Progress = silent) -> None:
    """The same in this process; the manifest holds the result."""
    bundle = Bundle(folder)
    model, encoder = bundle.file("model"), encoder_of(bundle)
    assert model is not None and encoder is not None
    original = original if original.exists() else model
    with Loaded(original, encoder) as loaded:
        asked = loaded.asked(proof_samples(), progress)
    if asked:  # a context may be too small for any
        path = folder / EXPECTED
        Distributions.of(original, [exchange for _, exchange in asked], progress).save(path)
        size, digest = path.stat().st_size, sha256_of(path)
        entry = FileEntry(name=path.name, role="proof", quantization="f32", size=size, sha256=digest)
        files = (*bundle.manifest.files, entry)
        bundle.manifest = bundle.manifest.model_copy(update={"files": files})
    with Loaded(model, encoder) as loaded:
        renders = stages.renders_sha256(loaded)
    proof = Proof(tokens_sha256=tokens_sha256(model), renders_sha256=renders, divergence=None)
    bundle.manifest = bundle.manifest.model_copy(update={"proof": proof})
    run = examine(bundle, asked, progress)
    means = [c.value for c in run.checks if c.stage == "language" and isinstance(c.value, float)]
    proof = proof.model_copy(update={"divergence": means[0] if means else None, "runs": (run,)})
    bundle.manifest.model_copy(update={"proof": proof}).write(folder)


if __name__ == "__main__":
    subprocess_task.main(prove_here)
